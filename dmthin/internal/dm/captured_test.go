package dm

import (
	"encoding/binary"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCaptured decodes what a Linux 6.1 replied.
func TestCaptured(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the replies are of a little-endian machine")
	}
	const pool, thin, bare = "lamina-test-YPVRVUR27KK5ITSIYRXNUPBU2T", "lamina-test-HJBQXLR2RBKTPQDRRISQCZ3ZYJ", "lamina-test-AIWBJYUQB6W3AKDXYLFXR3R4PD"
	for name, x := range map[string]struct {
		cmd  uint
		call func(c *Control) (any, error)
		want any
	}{
		"version": {unix.DM_VERSION, func(c *Control) (any, error) { return c.Version() }, Version{4, 47, 0}},
		"list": {unix.DM_LIST_DEVICES, func(c *Control) (any, error) { return c.List() }, []Device{
			{Name: bare, Dev: DevNum{254, 2}, UUID: "LAMINA-N25T3VMSDNTAHOZ63NYOBVI7ZM"},
			{Name: thin, Dev: DevNum{254, 1}},
			{Name: pool, Dev: DevNum{254, 0}},
		}},
		"versions": {unix.DM_LIST_VERSIONS, func(c *Control) (any, error) { return c.ListVersions() }, []TargetType{
			{"log-writes", Version{1, 1, 0}},
			{"flakey", Version{1, 5, 0}},
			{"thin-pool", Version{1, 22, 0}},
			{"thin", Version{1, 22, 0}},
			{"striped", Version{1, 6, 0}},
			{"linear", Version{1, 4, 0}},
			{"error", Version{1, 5, 0}},
		}},
		"deps": {unix.DM_TABLE_DEPS, func(c *Control) (any, error) { return c.Deps(pool) }, []DevNum{{7, 1}, {7, 0}}},
		"info": {unix.DM_DEV_STATUS, func(c *Control) (any, error) { return c.Info(thin) }, Info{
			Name: thin, Dev: DevNum{254, 1}, ActiveTable: true,
		}},
		"pool-table": {unix.DM_TABLE_STATUS, func(c *Control) (any, error) { return c.Table(pool) }, []Target{ThinPool{
			Metadata: DevNum{7, 0}, Data: DevNum{7, 1}, BlockSectors: 128, LowWaterBlocks: 1016,
			SkipBlockZeroing: true, ErrorIfNoSpace: true,
		}.Target(131072)}},
		"pool-status": {unix.DM_TABLE_STATUS, func(c *Control) (any, error) { return c.PoolStatus(pool) }, PoolStatus{
			MetadataUsed: 112, MetadataTotal: 1024, DataUsed: 1, DataTotal: 1024, ErrorIfNoSpace: true, MetadataLowWater: 256,
		}},
		"thin-status": {unix.DM_TABLE_STATUS, func(c *Control) (any, error) { return c.ThinStatus(thin) }, ThinStatus{
			MappedSectors: 128, HighestMapped: 127,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := tWire(t, exchange{cmd: x.cmd, reply: tCaptured(t, name)})
			if got, err := x.call(c); err != nil || !reflect.DeepEqual(got, x.want) {
				t.Errorf("%+v, %v, expected %+v", got, err, x.want)
			}
		})
	}
}
