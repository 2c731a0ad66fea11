package differ

import (
	"archive/tar"
	"context"
	"io"
)

// readSize is how much of a file is read at once.
const readSize = 256 << 10

// A layer is a tar stream.
type layer struct {
	tar *tar.Writer
	buf []byte
}

func newLayer(out io.Writer) *layer { return &layer{tar: tar.NewWriter(out)} }

// write adds an entry, and releases it.
func (l *layer) write(ctx context.Context, e entry) error {
	defer e.release()
	if err := l.tar.WriteHeader(e.header); err != nil {
		return err
	}
	if e.file == nil {
		_, err := l.tar.Write(e.data)
		return err
	}
	return l.copy(ctx, e)
}

// copy writes the content of a file, which must be as long as the header says, and the same at the end as at the begin.
func (l *layer) copy(ctx context.Context, e entry) error {
	if l.buf == nil {
		l.buf = make([]byte, readSize)
	}
	for left := e.header.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := e.file.read(l.buf[:min(left, readSize)])
		if err != nil {
			return whileRead(e.header.Name, err)
		}
		if _, err := l.tar.Write(l.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	if err := e.file.unchanged(); err != nil {
		return whileRead(e.header.Name, err)
	}
	return nil
}

func (l *layer) close() error { return l.tar.Close() }
