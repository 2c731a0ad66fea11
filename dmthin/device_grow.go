package dmthin

import "context"

// limits are what the devices have now.
func (p *devicePlace) limits() (limits, error) {
	if err := p.made(); err != nil {
		return limits{}, err
	}
	return limits{
		data: p.layout.dataSize(), metadata: p.layout.Metadata[0].Length, free: noLimit,
		why: "its devices have no more: add one with `lamina pool add`",
	}, nil
}

func (p *devicePlace) grow(ctx context.Context, _, _ uint64) (poolDevices, error) {
	return p.attach(ctx, "")
}
