package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/lamina-snapshotter/lamina/admin"
)

const (
	// completionTime is how long somebody who presses Tab waits for keys.
	completionTime = time.Second
	// completions is how many keys are offered.
	completions = 1000
)

// completeKeys offers the keys of a daemon that answers at once, beside what the library offers.
func completeKeys(ctx context.Context, c *cli.Command) {
	cli.DefaultCompleteWithFlags(ctx, c)
	s, err := loadSettings(c)
	if err != nil {
		return
	}
	client, err := s.client()
	if err != nil {
		return
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	n := 0
	_ = client.Snapshots(ctx, func(one admin.Snapshot) error { // whoever asks at a prompt has no use for an error
		if n++; n > completions {
			return context.Canceled
		}
		if plain(one.Key) {
			_, _ = fmt.Fprintln(c.Root().Writer, one.Key)
		}
		return nil
	})
}

// plain reports whether a shell takes a key as it is: what it completes it may also run through an expansion. A colon is no
// part of a word in bash, but of keys.
func plain(key string) bool {
	for _, r := range key {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '/' || r == ':' || r == '.' || r == '_' || r == '-'
		if !ok {
			return false
		}
	}
	return key != "" && key[0] != '-'
}
