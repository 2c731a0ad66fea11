package main

import (
	"context"
	"time"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/doctor"
)

const (
	examinePath = "/v1/doctor"
	usagePath   = "/v1/doctor/usage"
	// answerWait is how long the daemon may take to answer: a little more than its examination may.
	answerWait = doctor.Limit + 20*time.Second
)

// An examiner is what the doctor's endpoints serve: a lamina.Host.
type examiner interface {
	Examine(ctx context.Context, found func(doctor.Finding)) error
	Usage(ctx context.Context, each func(doctor.Usage)) error
}

// doctorEndpoints are the doctor's pages of the admin socket. A line is what the command prints with -o json.
func doctorEndpoints(host examiner) []admin.Endpoint {
	return []admin.Endpoint{
		admin.Lines(examinePath, "what the doctor finds", answerWait, collected(host.Examine)),
		admin.Lines(usagePath, "what each volume has of the pool", answerWait, collected(host.Usage)),
	}
}

// collected has each keep what a look tells, and tells it afterwards: the doctor's look has no error to end it with, and is
// not to wait for a client.
func collected[T any](look func(context.Context, func(T)) error) func(context.Context, func(T) error) error {
	return func(ctx context.Context, each func(T) error) error {
		var all []T
		err := look(ctx, func(one T) { all = append(all, one) })
		for _, one := range all {
			if err := each(one); err != nil {
				return err
			}
		}
		return err
	}
}

// askDoctor asks the daemon for one of the doctor's pages.
func askDoctor[T any](ctx context.Context, c *admin.Client, path string, say func(T)) error {
	return admin.Ask(ctx, c, path, answerWait, func(one T) error {
		say(one)
		return nil
	})
}
