package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// A file is one of the node.
type file struct {
	to   string
	from string // what it is a copy of, or
	text string // what it holds
	mode fs.FileMode
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
	next := nextOf(f.to)
	if err := write(next, content, f.mode); err != nil {
		return errors.Join(err, remove(next)) // none may have been made
	}
	failpoint.Hit("node.written")
	err := os.Rename(next, f.to)
	failpoint.Hit("node.replaced")
	return err
}

// nextOf is the name of what a file is to hold next, until it is whole.
func nextOf(name string) string { return name + ".new" }

func write(name string, content []byte, mode fs.FileMode) (err error) {
	w, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = w.Write(content)
	return errors.Join(err, w.Chmod(mode), w.Sync()) // one that lay there may have had another mode
}

// digest tells apart what files are to hold.
func digest(files []file) (string, error) {
	h := sha256.New()
	for _, f := range files {
		if err := f.hash(h); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (f file) hash(w io.Writer) (err error) {
	if f.from == "" {
		_, err = fmt.Fprintf(w, "%s %d\n%s", f.to, len(f.text), f.text)
		return err
	}
	r, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	info, err := r.Stat()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s %d\n", f.to, info.Size())
	if err == nil {
		_, err = io.Copy(w, r) // the program is too large for the memory of a pod that does this beside its installation
	}
	return err
}

// is says whether a file holds just that.
func is(name, text string) bool {
	have, err := os.ReadFile(name)
	return err == nil && string(have) == text
}

// removeAll removes files, with what a kill has left of their next ones, and directories in which nobody else has put anything. They
// may be gone.
func removeAll(names []string) (err error) {
	for _, name := range names {
		err = errors.Join(err, remove(nextOf(name)), remove(name))
		failpoint.Hit("node.removed")
	}
	return err
}

func remove(name string) error {
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func exists(name string) (bool, error) {
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
