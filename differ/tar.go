package differ

import (
	"archive/tar"
	"io"
)

// A layer is a tar stream.
type layer struct{ tar *tar.Writer }

func newLayer(out io.Writer) *layer { return &layer{tar: tar.NewWriter(out)} }

// write adds an entry, or a piece of the one before.
func (l *layer) write(e entry) error {
	if e.header != nil {
		if err := l.tar.WriteHeader(e.header); err != nil {
			return err
		}
	}
	_, err := l.tar.Write(e.data)
	if e.free != nil {
		e.free <- e.data[:cap(e.data)] // it has room for all there are
	}
	return err
}

func (l *layer) close() error { return l.tar.Close() }
