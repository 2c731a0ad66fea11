package metadata

import "math/bits"

// ReserveID returns an id that neither a record nor the trash has, and that is not reserved. The reservation is in
// memory alone: it ends when the id is recorded, or with the process. Then the id may be given once more, and what was
// made under it is garbage (rule 3 of the crash model).
func (s *Store) ReserveID() ID {
	return ID(s.nextID.Add(1) - 1)
}

// ReserveDevice returns the lowest thin device id that neither a record nor the trash has, and that is not reserved. It
// ends as a reservation of an id does, or by ReleaseDevice.
func (s *Store) ReserveDevice() (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.devices.takeLowest()
}

// ReleaseDevice frees a reserved device id that was not recorded.
func (s *Store) ReleaseDevice(dev uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices.free(dev)
}

// deviceSet is the set of taken device ids, a bit each: 2 MiB when all are. Id 0 is never given, so that a forgotten
// field names no device. The zero value is empty.
type deviceSet struct {
	words []uint64
	low   int // no word before this one has a free bit
}

func (d *deviceSet) take(dev uint32) {
	w := int(dev / 64)
	for len(d.words) <= w {
		d.words = append(d.words, 0)
	}
	d.words[w] |= 1 << (dev % 64)
}

func (d *deviceSet) free(dev uint32) {
	w := int(dev / 64)
	if w < len(d.words) {
		d.words[w] &^= 1 << (dev % 64)
		d.low = min(d.low, w)
	}
}

func (d *deviceSet) takeLowest() (uint32, error) {
	d.take(0)
	for d.low < len(d.words) && d.words[d.low] == ^uint64(0) {
		d.low++
	}
	dev := d.low * 64
	if d.low < len(d.words) {
		dev += bits.TrailingZeros64(^d.words[d.low])
	}
	if dev > MaxDevice {
		return 0, ErrNoDevice
	}
	d.take(uint32(dev))
	return uint32(dev), nil
}
