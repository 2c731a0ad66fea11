package dm

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRequests checks every request byte by byte.
func TestRequests(t *testing.T) {
	const cookie = 0x4f0000 // PRIMARY_SOURCE | OTHER | DISK | SUBSYSTEM | DM, no semaphore
	message := func(text string) rawMessage {
		return rawMessage{name: "p", data: layout(uint64(0), text, "\x00"), trailing: 1024 - 8 - len(text) - 1}
	}
	for name, x := range map[string]struct {
		cmd  uint
		want rawMessage
		call func(c *Control) error
	}{
		"version": {
			unix.DM_VERSION,
			rawMessage{},
			func(c *Control) error { _, err := c.Version(); return err },
		},
		"create": {
			unix.DM_DEV_CREATE,
			rawMessage{name: "v", uuid: "LAMINA-1"},
			func(c *Control) error { _, err := c.Create("v", "LAMINA-1"); return err },
		},
		"longest names": {
			unix.DM_DEV_CREATE,
			rawMessage{name: strings.Repeat("n", 127), uuid: strings.Repeat("u", 128)},
			func(c *Control) error {
				_, err := c.Create(strings.Repeat("n", 127), strings.Repeat("u", 128))
				return err
			},
		},
		"info": {
			unix.DM_DEV_STATUS,
			rawMessage{name: "v"},
			func(c *Control) error { _, err := c.Info("v"); return err },
		},
		"remove": {
			unix.DM_DEV_REMOVE,
			rawMessage{name: "v", event: cookie},
			func(c *Control) error { return c.Remove("v") },
		},
		"remove deferred": {
			unix.DM_DEV_REMOVE,
			rawMessage{name: "v", event: cookie, flags: 1 << 17},
			func(c *Control) error { _, err := c.RemoveDeferred("v"); return err },
		},
		"suspend": {
			unix.DM_DEV_SUSPEND,
			rawMessage{name: "v", flags: 1 << 1},
			func(c *Control) error { return c.Suspend("v", 0) },
		},
		"suspend with flags": {
			unix.DM_DEV_SUSPEND,
			rawMessage{name: "v", flags: 1<<1 | 1<<10 | 1<<11},
			func(c *Control) error { return c.Suspend("v", NoFlush|SkipLockFS) },
		},
		"resume": {
			unix.DM_DEV_SUSPEND,
			rawMessage{name: "v", event: cookie},
			func(c *Control) error { return c.Resume("v") },
		},
		"clear": {
			unix.DM_TABLE_CLEAR,
			rawMessage{name: "v"},
			func(c *Control) error { return c.Clear("v") },
		},
		"load": {
			unix.DM_TABLE_LOAD,
			rawMessage{name: "v", flags: 1 << 0, targets: 2, data: layout(
				uint64(0), uint64(2048), uint32(0), uint32(56), "thin\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"254:0 70000\x00\x00\x00\x00\x00",
				uint64(2048), uint64(8), uint32(0), uint32(48), "error\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"\x00\x00\x00\x00\x00\x00\x00\x00",
			)},
			func(c *Control) error {
				return c.Load("v", true,
					Thin{Pool: DevNum{254, 0}, ID: 70000}.Target(2048), Target{Start: 2048, Length: 8, Type: "error"})
			},
		},
		"deps": {
			unix.DM_TABLE_DEPS,
			rawMessage{name: "v", trailing: 1024},
			func(c *Control) error { _, err := c.Deps("v"); return err },
		},
		"table": {
			unix.DM_TABLE_STATUS,
			rawMessage{name: "v", flags: 1 << 4, trailing: 1024},
			func(c *Control) error { _, err := c.Table("v"); return err },
		},
		"status": {
			unix.DM_TABLE_STATUS,
			rawMessage{name: "v", trailing: 1024},
			func(c *Control) error { _, err := c.TableStatus("v", false); return err },
		},
		"status without flush": {
			unix.DM_TABLE_STATUS,
			rawMessage{name: "v", flags: 1 << 11, trailing: 1024},
			func(c *Control) error { _, err := c.TableStatus("v", true); return err },
		},
		"message": {
			unix.DM_TARGET_MSG,
			rawMessage{name: "p", data: layout(uint64(77), "hi there\x00"), trailing: 1024 - 17},
			func(c *Control) error { _, err := c.Message("p", 77, "hi there"); return err },
		},
		"create thin": {
			unix.DM_TARGET_MSG, message("create_thin 16777215"),
			func(c *Control) error { return c.CreateThin("p", MaxThinID) },
		},
		"create snap": {
			unix.DM_TARGET_MSG, message("create_snap 5 3"),
			func(c *Control) error { return c.CreateSnap("p", 5, 3) },
		},
		"delete thin": {
			unix.DM_TARGET_MSG, message("delete 5"),
			func(c *Control) error { return c.DeleteThin("p", 5) },
		},
		"transaction id": {
			unix.DM_TARGET_MSG, message("set_transaction_id 7 18446744073709551615"),
			func(c *Control) error { return c.SetTransactionID("p", 7, 1<<64-1) },
		},
		"reserve": {
			unix.DM_TARGET_MSG, message("reserve_metadata_snap"),
			func(c *Control) error { return c.ReserveMetadataSnap("p") },
		},
		"release": {
			unix.DM_TARGET_MSG, message("release_metadata_snap"),
			func(c *Control) error { return c.ReleaseMetadataSnap("p") },
		},
		"cancel": {
			unix.DM_TARGET_MSG, message("@cancel_deferred_remove"),
			func(c *Control) error { return c.CancelRemove("p") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			done := rawMessage{minor: 47, name: "v", size: 305}
			done.trailing = 8 // an empty list, for the requests that read one
			c := tWire(t, exchange{cmd: x.cmd, want: x.want.bytes(), reply: done.bytes()[:312]})
			if err := x.call(c); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRefused checks that what the kernel would misread is not sent.
func TestRefused(t *testing.T) {
	c := tWire(t)
	for what, call := range map[string]func() error{
		"no name":       func() error { return c.Remove("") },
		"long name":     func() error { _, err := c.Create(strings.Repeat("n", 128), ""); return err },
		"slash":         func() error { return c.Resume("a/b") },
		"NUL in name":   func() error { return c.Resume("a\x00") },
		"control":       func() error { _, err := c.Create("control", ""); return err },
		"dot":           func() error { _, err := c.Create(".", ""); return err },
		"dots":          func() error { _, err := c.Create("..", ""); return err },
		"long uuid":     func() error { _, err := c.Create("v", strings.Repeat("u", 129)); return err },
		"NUL in uuid":   func() error { _, err := c.Create("v", "\x00u"); return err },
		"long target":   func() error { return c.Load("v", false, Target{Type: strings.Repeat("t", 16)}) },
		"no target":     func() error { return c.Load("v", false, Target{}) },
		"NUL in params": func() error { return c.Load("v", false, Target{Type: "thin", Params: "1\x00"}) },
		"NUL in text":   func() error { _, err := c.Message("v", 0, "1\x00"); return err },
		"high thin id":  func() error { return c.CreateThin("p", MaxThinID+1) },
		"high origin":   func() error { return c.CreateSnap("p", 1, MaxThinID+1) },
		"node":          func() error { return c.MakeNode("..", DevNum{}) },
		"no node":       func() error { return c.RemoveNode("") },
	} {
		var op *OpError
		if err := call(); !errors.Is(err, unix.EINVAL) || !errors.As(err, &op) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestOpError(t *testing.T) {
	c := tWire(t,
		exchange{cmd: unix.DM_TARGET_MSG, err: unix.EEXIST},
		exchange{cmd: unix.DM_DEV_SUSPEND, err: unix.ENXIO},
		exchange{cmd: unix.DM_TARGET_MSG, err: unix.ENODATA},
		exchange{cmd: unix.DM_LIST_DEVICES, err: unix.EACCES},
	)
	for _, x := range []struct {
		err   error
		text  string
		is    []error
		isNot error
	}{
		{
			c.CreateSnap("lamina-pool", 5, 3), "device mapper: create snap 5 of 3 on lamina-pool: file exists",
			[]error{unix.EEXIST, fs.ErrExist},
			fs.ErrNotExist,
		},
		{
			c.Resume("lamina-5"), "device mapper: resume lamina-5: no such device or address",
			[]error{unix.ENXIO, fs.ErrNotExist},
			fs.ErrExist,
		},
		{
			c.DeleteThin("lamina-pool", 9), "device mapper: delete thin 9 on lamina-pool: no data available",
			[]error{unix.ENODATA, fs.ErrNotExist},
			fs.ErrExist,
		},
		{
			func() error { _, err := c.List(); return err }(), "device mapper: list devices: permission denied",
			[]error{unix.EACCES, fs.ErrPermission},
			fs.ErrNotExist,
		},
	} {
		if got := x.err.Error(); got != x.text {
			t.Errorf("%s, expected %s", got, x.text)
		}
		for _, is := range x.is {
			if !errors.Is(x.err, is) {
				t.Errorf("%v is not %v", x.err, is)
			}
		}
		if errors.Is(x.err, x.isNot) {
			t.Errorf("%v is %v", x.err, x.isNot)
		}
	}
}

// TestGrow checks that a reply that does not fit is asked for again with more room, within bounds.
func TestGrow(t *testing.T) {
	ask := func(room int) rawMessage { return rawMessage{flags: 1 << 14, trailing: room} }
	entry := layout(uint64(0xfe03), uint32(0), "v\x00\x00\x00", uint32(7), uint32(2))
	c := tWire(t,
		exchange{unix.DM_LIST_DEVICES, ask(16 << 10).bytes(), full(ask(16 << 10)), nil},
		exchange{unix.DM_LIST_DEVICES, ask(64 << 10).bytes(), rawMessage{data: entry}.bytes(), nil},
	)
	devices, err := c.List()
	if want := (Device{Name: "v", Dev: DevNum{254, 3}, EventNr: 7}); err != nil || len(devices) != 1 || devices[0] != want {
		t.Errorf("%v, %v, expected %v", devices, err, want)
	}

	requests, largest := 0, 0
	c = newControl(func(_ uint, buf []byte) error {
		requests, largest = requests+1, len(buf)
		copy(buf, full(rawMessage{}))
		return nil
	})
	if _, err := c.List(); !errors.Is(err, unix.ENOBUFS) {
		t.Errorf("a list without end: %v", err)
	}
	if requests != 7 || largest != 312+maxRoom {
		t.Errorf("%d requests up to %d bytes", requests, largest)
	}
	requests = 0
	if _, err := c.Message("v", 0, "@stats_print_clear 0"); !errors.Is(err, unix.ENOBUFS) || requests != 1 {
		t.Errorf("a message was sent %d times: %v", requests, err)
	}
}

// TestMalformed feeds replies that lie.
func TestMalformed(t *testing.T) {
	spec := func(next uint32, tail string) []byte {
		return layout(uint64(0), uint64(8), uint32(0), next, "linear\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", tail)
	}
	device := func(next uint32, tail string) []byte { return layout(uint64(1), next, tail) }
	for name, x := range map[string]struct {
		reply rawMessage
		call  func(c *Control) error
	}{
		"size":           {rawMessage{size: 1 << 20}, (*Control).anyTable},
		"name":           {rawMessage{name: strings.Repeat("n", 128)}, (*Control).anyTable},
		"uuid":           {rawMessage{uuid: strings.Repeat("u", 129)}, (*Control).anyTable},
		"no targets":     {rawMessage{targets: 1}, (*Control).anyTable},
		"many targets":   {rawMessage{targets: 1 << 31, data: spec(0, "x\x00")}, (*Control).anyTable},
		"no end":         {rawMessage{targets: 1, data: spec(0, "xyz")}, (*Control).anyTable},
		"next target":    {rawMessage{targets: 2, data: append(spec(0, "xyz\x00"), spec(0, "xyz\x00")...)}, (*Control).anyTable},
		"past target":    {rawMessage{targets: 2, data: append(spec(1<<31, "xyz\x00"), spec(0, "xyz\x00")...)}, (*Control).anyTable},
		"list cut":       {rawMessage{data: layout(uint64(1))}, (*Control).anyList},
		"list no end":    {rawMessage{data: device(0, "name")}, (*Control).anyList},
		"list back":      {rawMessage{data: device(8, "n\x00")}, (*Control).anyList},
		"list past":      {rawMessage{data: device(1<<31, "n\x00")}, (*Control).anyList},
		"list uuid":      {rawMessage{data: device(0, "n\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00uuid")}, (*Control).anyList},
		"deps":           {rawMessage{data: layout(uint32(2), uint32(0), uint64(1))}, (*Control).anyDeps},
		"deps cut":       {rawMessage{data: layout(uint32(0))}, (*Control).anyDeps},
		"message no end": {rawMessage{flags: unix.DM_DATA_OUT_FLAG, data: []byte("abc")}, (*Control).anyMessage},
		"message none":   {rawMessage{flags: unix.DM_DATA_OUT_FLAG, size: 305}, (*Control).anyMessage},
		"version cut":    {rawMessage{data: layout(uint32(0), uint32(1))}, (*Control).anyVersions},
	} {
		t.Run(name, func(t *testing.T) {
			c := newControl(func(_ uint, buf []byte) error {
				copy(buf, x.reply.bytes())
				return nil
			})
			if err := x.call(c); !errors.Is(err, errReply) {
				t.Error(err)
			}
		})
	}
}

func (c *Control) anyTable() error    { _, err := c.Table("v"); return err }
func (c *Control) anyList() error     { _, err := c.List(); return err }
func (c *Control) anyDeps() error     { _, err := c.Deps("v"); return err }
func (c *Control) anyMessage() error  { _, err := c.Message("v", 0, "x"); return err }
func (c *Control) anyVersions() error { _, err := c.ListVersions(); return err }

func TestOldKernelLists(t *testing.T) {
	// Before Linux 4.14 nothing follows the name.
	data := layout(uint64(0xfe00), uint32(16), "ab\x00\x00", uint64(0xfe01), uint32(0), "c\x00\x00\x00")
	c := tWire(t, exchange{cmd: unix.DM_LIST_DEVICES, reply: rawMessage{data: data}.bytes()})
	devices, err := c.List()
	if err != nil || len(devices) != 2 || devices[0] != (Device{Name: "ab", Dev: DevNum{254, 0}}) ||
		devices[1] != (Device{Name: "c", Dev: DevNum{254, 1}}) {
		t.Errorf("%v, %v", devices, err)
	}
	// None at all is one entry of zeroes.
	c = tWire(t, exchange{cmd: unix.DM_LIST_DEVICES, reply: rawMessage{trailing: 16}.bytes()})
	if devices, err := c.List(); err != nil || len(devices) != 0 {
		t.Errorf("%v, %v", devices, err)
	}
}

func TestTargetVersion(t *testing.T) {
	entry := layout(uint32(0), uint32(1), uint32(22), uint32(0), "thin-pool\x00\x00\x00\x00\x00\x00\x00")
	pool := rawMessage{data: entry}.bytes()
	c := tWire(t,
		exchange{unix.DM_GET_TARGET_VERSION, rawMessage{name: "thin-pool", trailing: 1024}.bytes(), pool, nil},
		exchange{cmd: unix.DM_GET_TARGET_VERSION, err: unix.ENOTTY},
		exchange{cmd: unix.DM_LIST_VERSIONS, reply: pool},
		exchange{cmd: unix.DM_GET_TARGET_VERSION, err: unix.EINVAL},
	)
	for range 2 {
		if v, err := c.TargetVersion("thin-pool"); err != nil || v.String() != "1.22.0" || !v.AtLeast(1, 22) || v.AtLeast(1, 23) || v.AtLeast(2, 0) {
			t.Error(v, err)
		}
	}
	if _, err := c.TargetVersion("thin-pool"); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestSuspendTriesAgain(t *testing.T) {
	c := tWire(t,
		exchange{cmd: unix.DM_DEV_SUSPEND, err: unix.EINTR},
		exchange{cmd: unix.DM_DEV_SUSPEND, err: unix.EINTR},
		exchange{cmd: unix.DM_DEV_SUSPEND},
	)
	if err := c.Suspend("v", 0); err != nil {
		t.Error(err)
	}
}
