package overlayaufs

// Chains are chains of layers that a union file system cannot mount.
type Chains struct {
	Count   int
	Longest int // layers, the topmost included
	Limit   int // of the union file system
}

// tooLong returns the chains that aufs cannot mount as it is built unless somebody says otherwise. A module for more is not asked: it
// may be that of a kernel to come.
func (m manner) tooLong(layers []Layer) (c Chains) {
	if m.to != formAufs {
		return c
	}
	c.Limit = defaultBranches
	for _, l := range layers {
		if n := len(l.Below) + 1; n > c.Limit {
			c.Count++
			c.Longest = max(c.Longest, n)
		}
	}
	return c
}
