package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
)

// A growingRoot has a pool of 1 GiB more with each device.
type growingRoot struct {
	fakeRoot

	data uint64
	on   []string
}

func (g *growingRoot) AddDevice(_ context.Context, device string) error {
	g.data += 1 << 30
	g.on = append(g.on, device)
	return nil
}

func (g *growingRoot) Status(context.Context) (admin.Status, error) {
	pool := &admin.Pool{Data: admin.Fill{Total: g.data}, On: g.on}
	return admin.Status{Running: true, Backends: []admin.Backend{{Name: "thin", Pool: pool}}}, nil
}

// The adding of a device tells how large that has made the pool of the daemon that did it.
func TestPoolAddSays(t *testing.T) {
	root, address := tLockedRoot(t), tSocketPath(t)
	f := &growingRoot{data: 1 << 30, on: []string{"/dev/a"}}
	a, err := openAdmin(t.Context(), address, admin.Handler(root, f, f))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.close(context.Background())) })
	config := tFile(t, fmt.Sprintf("root = %q\naddress = %q\n[thin]\npool = \"device\"\ndevices = [\"/dev/a\"]\n[admin]\naddress = %q\n", root, tSocketPath(t), address))
	require.Equal(t, `{"device":"/dev/b","on":["/dev/a","/dev/b"],"before":1073741824,"after":2147483648}`+"\n",
		tOutput(t, "pool", "add", "/dev/b", "-o", "json", "--config", config))
	require.Equal(t, `{"device":"/dev/d","on":["/dev/a","/dev/b","/dev/d"],"before":2147483648,"after":3221225472}`+"\n",
		tOutput(t, "pool", "add", "/dev/../dev/d", "-o", "json", "--config", config), "which the file does not say")
	require.Equal(t, "/dev/c is in the pool, which has 4 GiB for data instead of 3 GiB: add it to thin.devices before lamina starts again\n",
		tOutput(t, "pool", "add", "/dev//c", "--config", config))

	for text, m := range map[string]made{
		"the pool is there":                     {},
		"the pool is made":                      {Before: new(uint64(0))},
		"the pool is made, with 1 KiB for data": {Before: new(uint64(0)), After: new(uint64(1024))},
		`the pool was there already, with 2 KiB for data, on /dev/a, "/dev/\x1b"`: {On: []string{"/dev/a", "/dev/\x1b"}, Before: new(uint64(2048)), After: new(uint64(2048))},
	} {
		require.Equal(t, text, m.created())
	}
}
