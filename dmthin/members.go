package dmthin

import (
	"fmt"
	"strings"
)

// A takenError says that a device holds what make overwrites only with force.
type takenError struct{ text string }

// Error returns the sentence.
func (e *takenError) Error() string { return e.text }

func takenf(format string, args ...any) error { return &takenError{fmt.Sprintf(format, args...)} }

// match returns the devices in the order of a layout, or an error that says which do not belong to it or are missing.
func match(l *layout, devices []*blockDevice) ([]*blockDevice, error) {
	members := make([]*blockDevice, len(l.Devices))
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for _, d := range devices {
		if what := d.otherThan(l); what != "" {
			say("%s is no device of the pool of the store %s: %s", d.path, l.UUID, what)
			continue
		}
		i := d.header.Index
		if other := members[i]; other != nil {
			say("%s and %s are both device %d of the pool: one is a copy", other.path, d.path, i)
		}
		if had := l.Devices[i].Size; d.size < had {
			say("%s has shrunk: it has %d bytes, and had %d when the pool was made", d.path, d.size, had)
		}
		members[i] = d
	}
	for i, d := range members {
		if d == nil {
			say("device %d of the pool is missing: %s", i, l.Devices[i])
		}
	}
	if len(wrong) > 0 {
		return nil, takenf("%s", strings.Join(wrong, "; "))
	}
	return members, nil
}

// otherThan says what the device is if it does not belong to a layout, "" if it does.
func (d *blockDevice) otherThan(l *layout) string {
	switch h := d.header; {
	case h == nil && d.found == "":
		return "it is blank"
	case h == nil:
		return "it holds " + d.found
	case h.Layout.continues(*l) && h.Index >= len(l.Devices):
		return "it was about to be added: run `lamina pool add` for it again"
	case h.Layout.equal(*l), h.Layout.continues(*l), l.continues(h.Layout): // another generation is one that a cut left
		return ""
	default:
		return fmt.Sprintf("it is device %d of %d of another one, of the store %s", h.Index, len(h.Layout.Devices), h.Layout.UUID)
	}
}

// checkNew returns an error if devices, none of them the first one of a pool, are neither blank nor what a make that was
// cut short left. The uuid is that of the store which the make was for, "" if there was none. With force they need not be
// blank, but those of a pool whose first device is not among them are an error even so.
func checkNew(devices []*blockDevice, force bool) (uuid string, err error) {
	var half *layout
	for _, d := range devices {
		if d.header == nil {
			if d.found != "" && !force {
				return "", takenf("%s is not blank: it holds %s; wipe it (wipefs --all), or run `lamina pool create --force`", d.path, d.found)
			}
			continue
		}
		l := &d.header.Layout
		if len(l.Devices) != len(devices) || half != nil && !l.equal(*half) {
			return "", takenf("%s is device %d of %d of a pool of the store %s, whose first device is missing: %s",
				d.path, d.header.Index, len(l.Devices), l.UUID, l.Devices[0])
		}
		half, uuid = l, l.UUID
	}
	return uuid, nil
}
