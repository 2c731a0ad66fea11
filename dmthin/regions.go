package dmthin

import (
	"errors"
	"io"
)

// regions are parts of block devices, one after the other, that are read and written as one.
type regions []region

type region struct {
	file           directFile
	offset, length int64 // bytes
}

func (r regions) size() (size int64) {
	for _, part := range r {
		size += part.length
	}
	return size
}

// ReadAt reads as io.ReaderAt does.
func (r regions) ReadAt(b []byte, offset int64) (int, error) {
	return r.each(b, offset, func(f directFile, b []byte, at int64) (int, error) { return f.ReadAt(b, at) })
}

// WriteAt writes b, whose offset and length are multiples of the devices' sectors.
func (r regions) WriteAt(b []byte, offset int64) (int, error) {
	return r.each(b, offset, func(f directFile, b []byte, at int64) (int, error) { return f.WriteAt(b, at) })
}

// each calls do for the parts of b that lie in one region each.
func (r regions) each(b []byte, offset int64, do func(f directFile, b []byte, at int64) (int, error)) (done int, err error) {
	for _, part := range r {
		if offset >= part.length {
			offset -= part.length
			continue
		}
		n, err := do(part.file, b[done:done+int(min(int64(len(b)-done), part.length-offset))], part.offset+offset)
		done, offset = done+n, 0
		if err != nil || done == len(b) {
			return done, err
		}
	}
	return done, io.EOF
}

func (r regions) sync() error {
	var errs []error
	for _, part := range r {
		errs = append(errs, part.file.file.Sync())
	}
	return errors.Join(errs...)
}

// Close closes the devices.
func (r regions) Close() error {
	var errs []error
	for _, part := range r {
		errs = append(errs, part.file.Close())
	}
	return errors.Join(errs...)
}

// openRegions opens segments of the members of a layout.
func openRegions(members []*blockDevice, segments []segment, open func(*blockDevice) (directFile, error)) (regions, error) {
	var r regions
	for _, s := range segments {
		f, err := open(members[s.Device])
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r = append(r, region{f, int64(s.Offset), int64(s.Length)})
	}
	return r, nil
}
