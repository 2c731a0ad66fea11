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
	// completions is how many texts are offered.
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
	offered := make(map[string]bool)
	_ = client.Snapshots(ctx, func(one admin.Snapshot) error { // whoever asks at a prompt has no use for an error
		for _, text := range offers(one.Key) {
			if plain(text) && !offered[text] {
				offered[text] = true
				_, _ = fmt.Fprintln(c.Root().Writer, text)
			}
		}
		if len(offered) >= completions {
			return context.Canceled
		}
		return nil
	})
}

// offers are what may be typed for a key: itself and the name in it, or the digits of a digest, as what follows a colon is a
// description to the scripts.
func offers(key string) []string {
	_, name := splitKey(key)
	if m := digest.FindStringSubmatch(name); m != nil {
		return []string{m[2]}
	}
	return []string{name, key}
}

// plain reports whether a shell takes a text as it is: what it completes it may also run through an expansion.
func plain(text string) bool {
	for _, r := range text {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '/' || r == '.' || r == '_' || r == '-'
		if !ok {
			return false
		}
	}
	return text != "" && text[0] != '-'
}
