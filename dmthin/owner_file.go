package dmthin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lamina-snapshotter/lamina/internal/failpoint"
)

// maxOwnerSize is more than any owner file of ours takes, in bytes.
const maxOwnerSize = 4096

// ownerFile is the content of the file that says whose the files of a pool are.
type ownerFile struct {
	UUID string `json:"uuid"` // of the store
}

// readOwnerFile returns the uuid in an owner file, or "" if there is none.
func readOwnerFile(path string) (uuid string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // nothing was written through it
	data, err := io.ReadAll(io.LimitReader(f, maxOwnerSize+1))
	if err != nil {
		return "", err
	}
	o, err := parseOwnerFile(data)
	if err != nil {
		return "", fmt.Errorf(`%s does not say which store the pool belongs to (%w): write the file again as {"uuid":"..."}, or move the directory away`, path, err)
	}
	return o.UUID, nil
}

func parseOwnerFile(data []byte) (ownerFile, error) {
	if len(data) > maxOwnerSize {
		return ownerFile{}, fmt.Errorf("it has more than %d bytes", maxOwnerSize)
	}
	var o ownerFile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // what a later format adds may matter
	if err := dec.Decode(&o); err != nil {
		return ownerFile{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return ownerFile{}, errors.New("something follows the record")
	}
	if o.UUID == "" {
		return ownerFile{}, errors.New("the uuid is empty")
	}
	return o, nil
}

// writeOwnerFile writes an owner file. After a power cut it is there whole or not at all, and at return it is there: the
// content is on the disk before the name leads to it. A temporary file may be left, which the next call overwrites.
func writeOwnerFile(path, uuid string) error {
	data, err := json.Marshal(ownerFile{UUID: uuid})
	if err != nil {
		return err
	}
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	failpoint.Hit("loop.owner-written")
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	failpoint.Hit("loop.owner-renamed")
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
