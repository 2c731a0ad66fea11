package dm

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzReply decodes any bytes as any reply: it may find them malformed, and nothing worse.
func FuzzReply(f *testing.F) {
	for _, name := range []string{"version", "list", "versions", "deps", "info", "pool-table", "pool-status", "thin-status"} {
		f.Add(tCaptured(f, name), false)
	}
	f.Add(layout(uint64(0)), true)
	f.Fuzz(func(t *testing.T, b []byte, headless bool) {
		if headless { // so that data are found without guessing a header
			b = rawMessage{targets: 2, data: b}.bytes()
		}
		c := newControl(func(_ uint, buf []byte) error {
			copy(buf, b)
			if len(buf) > 1<<16 { // a reply that says that it needs ever more room
				return unix.ENOMEM
			}
			return nil
		})
		_, _ = c.Version()
		_, _ = c.Info("v")
		_, _ = c.Message("v", 0, "x")
		_, _ = c.Deps("v")
		_, _ = c.PoolStatus("v")
		_, _ = c.ThinStatus("v")
		var said strings.Builder
		devices, _ := c.List()
		for _, d := range devices {
			said.WriteString(d.Name + d.UUID)
		}
		types, _ := c.ListVersions()
		for _, typ := range types {
			said.WriteString(typ.Name)
		}
		targets, _ := c.Table("v")
		for _, target := range targets {
			said.WriteString(target.Type + target.Params)
		}
		if strings.Contains(said.String(), "\x00") {
			t.Errorf("a string with a NUL: %v %v %v", devices, types, targets)
		}
	})
}

// FuzzPoolStatus and FuzzThinStatus check that a line is either refused or understood, not half.
func FuzzPoolStatus(f *testing.F) {
	f.Add("0 111/1024 0/1024 - rw discard_passdown queue_if_no_space - 256 ")
	f.Add("18446744073709551615 9/10 20/20 5 out_of_data_space no_discard_passdown error_if_no_space needs_check 1024")
	f.Add("Fail")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := ParsePoolStatus(line)
		if err != nil && s != (PoolStatus{}) {
			t.Errorf("%q is %+v and %v", line, s, err)
		}
		if err == nil && s.Mode < PoolFailed && len(strings.Fields(line)) < 7 {
			t.Errorf("%q is %+v", line, s)
		}
	})
}

func FuzzThinStatus(f *testing.F) {
	f.Add("1280 1279 ")
	f.Add("0 -")
	f.Fuzz(func(t *testing.T, line string) {
		s, err := ParseThinStatus(line)
		if err != nil && s != (ThinStatus{}) {
			t.Errorf("%q is %+v and %v", line, s, err)
		}
	})
}
