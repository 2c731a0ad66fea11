package dmthin

// What is found out about contents is kept, so that it is found out once: it needs a read of the volume, and of one that
// has no device the device as well.

// kind returns the file system of a content, whose device is given.
func (b *Backend) kind(id uint64, device string) (filesystem, error) {
	b.mu.Lock()
	kind, ok := b.kinds[id]
	b.mu.Unlock()
	if ok {
		return kind, nil
	}
	kind, err := probe(device)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kinds[id] = kind
	return kind, nil
}

// inherit notes that a content is a copy of another one.
func (b *Backend) inherit(id, origin uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if kind, ok := b.kinds[origin]; ok {
		b.kinds[id] = kind
	}
}

// remember notes what a frozen content holds.
func (b *Backend) remember(id uint64, f figures) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.frozen[id] = f
}

// thaw notes that a content may be written.
func (b *Backend) thaw(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.frozen, id)
}

// forget notes that a content becomes another one, or none.
func (b *Backend) forget(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.frozen, id)
	delete(b.kinds, id)
}
