package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A file is one of the node.
type file struct {
	to   string
	from string // what it is a copy of, or
	text string // what it holds
	mode fs.FileMode
}

func paths(files []file) (names []string) {
	for _, f := range files {
		names = append(names, f.to)
	}
	return names
}

func putAll(files []file) error {
	for _, f := range files {
		if err := put(f); err != nil {
			return err
		}
	}
	return nil
}

// put writes a file, with the directories above it. After a power cut it is the old one or the new one, and whole: what
// is under the other name is on the disk before it gets this one.
func put(f file) error {
	content := []byte(f.text)
	if f.from != "" {
		var err error
		if content, err = os.ReadFile(f.from); err != nil {
			return err
		}
	}
	if f.mode == 0 {
		f.mode = 0o644
	}
	if err := os.MkdirAll(filepath.Dir(f.to), 0o755); err != nil {
		return err
	}
	next := f.to + ".new"
	if err := write(next, content, f.mode); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, f.to)
}

func write(name string, content []byte, mode fs.FileMode) (err error) {
	w, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = w.Write(content)
	return errors.Join(err, w.Chmod(mode), w.Sync()) // one that lay there may have had another mode
}

// digest tells the contents of files apart.
func digest(names []string) (string, error) {
	h := sha256.New()
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(h, "%s %d\n%s", name, len(content), content) // a hash takes all
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// is says whether a file holds just that.
func is(name, text string) bool {
	have, err := os.ReadFile(name)
	return err == nil && string(have) == text
}

// removeAll removes files, and directories in which nobody else has put anything. They may be gone.
func removeAll(names []string) (err error) {
	for _, name := range names {
		if e := os.Remove(name); !errors.Is(e, fs.ErrNotExist) && !errors.Is(e, unix.ENOTEMPTY) {
			err = errors.Join(err, e)
		}
	}
	return err
}
