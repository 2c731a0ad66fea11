package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// fallBackTimeout bounds what is done even for one who has been told to stop.
const fallBackTimeout = 2 * time.Minute

// installContainerd tells containerd of the daemon, which runs: without it the CRI plugin would not start. The kubelet waits
// while containerd is restarted, and containers go on.
//
// A containerd that serves no kubelet with the new files gets what it last did with, or none: a node is worth more than
// its newest configuration. Only then are they refused, which wanted says: who is killed before that tries them again.
func (n *node) installContainerd(ctx context.Context, wanted string) error {
	if err := os.MkdirAll(n.at(containerdConf), 0o755); err != nil {
		return err
	}
	if err := n.systemd.restart(ctx, printUnit); err != nil {
		return err
	}
	files := n.told()
	want, err := digest(files)
	if err != nil {
		return err
	}
	if err := putAll(files[1:]); err != nil { // the first is its own
		return err
	}
	if is(n.at(containerdWith), want) {
		return errors.Join(n.systemd.start(ctx, containerdUnit), n.accept(want))
	}
	n.say("restarting %s", containerdUnit)
	if err := removeAll([]string{n.at(containerdWith)}); err != nil { // nobody knows until it is written down again
		return err
	}
	err = n.restartContainerd(ctx)
	switch canceled := (*jobError)(nil); {
	case err == nil:
		return n.accept(want)
	case ctx.Err() != nil, errors.As(err, &canceled) && canceled.result == "canceled":
		return err // it was this program that was stopped, or an administrator stops containerd
	}
	if fallen := n.fallBack(ctx); fallen != nil { // it may not be for the files then
		return errors.Join(err, fallen)
	}
	if refused := (*refusalError)(nil); errors.As(err, &refused) {
		return errors.Join(err, put(file{to: n.at(refusedWith), text: wanted}))
	}
	return err
}

// A refusalError is containerd's word that it serves no kubelet with its files. Other errors say nothing of them.
type refusalError struct{ error }

func (e *refusalError) Unwrap() error { return e.error }

func (n *node) restartContainerd(ctx context.Context) error {
	err := n.systemd.restart(ctx, containerdUnit)
	if failed := (*jobError)(nil); errors.As(err, &failed) && failed.result == "failed" {
		return &refusalError{err}
	}
	if err != nil {
		return err
	}
	return criServes(ctx, n.at(containerdSocket))
}

// kept are the files that are kept when containerd serves the kubelet with them. The first is the daemon's.
var kept = append([]string{laminaConfig}, containerdFiles...)

func (n *node) acceptedFile(name string) string {
	return filepath.Join(n.at(accepted), filepath.Base(name))
}

// accept keeps what containerd serves with. Who is killed in between leaves some of the old ones, and does it all again.
func (n *node) accept(want string) error {
	for _, name := range kept {
		if err := put(file{to: n.acceptedFile(name), from: n.at(name)}); err != nil {
			return err
		}
	}
	return errors.Join(put(file{to: n.at(containerdWith), text: want}), removeAll([]string{n.at(refusedWith)}))
}

// fallBack has containerd serve the kubelet with what it last did, also for one who has been told to stop meanwhile.
func (n *node) fallBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fallBackTimeout)
	defer cancel()
	err := n.fallBackLamina(ctx)
	n.say("restarting %s with what it had before", containerdUnit)
	for _, name := range containerdFiles {
		was, e := exists(n.acceptedFile(name))
		switch {
		case e != nil:
		case was:
			e = put(file{to: n.at(name), from: n.acceptedFile(name)})
		default:
			e = removeAll([]string{n.at(name)})
		}
		err = errors.Join(err, e)
	}
	if e := n.restartContainerd(ctx); e != nil {
		err = errors.Join(err, fmt.Errorf("with what it had before: %w", e))
	}
	return err
}

// fallBackLamina has the daemon serve the names that containerd is told of again. One that nobody was told of may stay as it is.
func (n *node) fallBackLamina(ctx context.Context) error {
	changed, err := n.differs(laminaConfig)
	if err != nil || !changed {
		return err
	}
	n.say("restarting %s with what it had before", laminaUnit)
	return errors.Join(
		removeAll([]string{n.at(servedWith)}), // or it would not be restarted for the next configuration
		put(file{to: n.at(laminaConfig), from: n.acceptedFile(laminaConfig)}),
		n.systemd.restart(ctx, laminaUnit),
	)
}

// refused is the error of files that are refused. It sees to it that those are there which are not: an administrator, or a backup, may
// have put the refused ones back. What printUnit makes is not looked at: another kernel has it say something else.
func (n *node) refused(ctx context.Context) error {
	err := fmt.Errorf("containerd served no kubelet with these files: change them, or delete %s to try once more", refusedWith)
	for _, name := range []string{laminaConfig, containerdFiles[1], containerdFiles[2]} {
		changed, e := n.differs(name)
		if e != nil {
			return errors.Join(err, e)
		}
		if changed {
			return errors.Join(err, n.fallBack(ctx))
		}
	}
	return err
}

// differs says whether a file is not as it was accepted. What the daemon is configured by makes no difference before any was.
func (n *node) differs(name string) (bool, error) {
	was, err := exists(n.acceptedFile(name))
	if err != nil {
		return false, err
	}
	is, err := exists(n.at(name))
	if err != nil || !was || !is {
		return err == nil && was != is && (was || name != laminaConfig), err
	}
	want, err := os.ReadFile(n.acceptedFile(name))
	if err != nil {
		return false, err
	}
	have, err := os.ReadFile(n.at(name))
	return string(have) != string(want), err
}
