package dm

import "testing"

// The lines without a comment are what Linux 6.1 said.
func TestParsePoolStatus(t *testing.T) {
	for line, want := range map[string]PoolStatus{
		"0 111/1024 0/1024 - rw discard_passdown queue_if_no_space - 256 ": {
			MetadataUsed: 111, MetadataTotal: 1024, DataTotal: 1024, MetadataLowWater: 256,
		},
		"0 113/1024 0/1024 18 rw discard_passdown queue_if_no_space - 256 ": {
			MetadataUsed: 113, MetadataTotal: 1024, DataTotal: 1024, HeldRoot: 18, MetadataLowWater: 256,
		},
		// dm-thin.c as read
		"18446744073709551615 9/10 20/20 - out_of_data_space no_discard_passdown error_if_no_space needs_check 1024 ": {
			TransactionID: 1<<64 - 1, MetadataUsed: 9, MetadataTotal: 10, DataUsed: 20, DataTotal: 20,
			Mode: PoolOutOfDataSpace, Discard: DiscardNoPassdown, ErrorIfNoSpace: true, NeedsCheck: true, MetadataLowWater: 1024,
		},
		// Linux before 4.3
		"1 9/10 20/30 - ro ignore_discard queue_if_no_space": {
			TransactionID: 1, MetadataUsed: 9, MetadataTotal: 10, DataUsed: 20, DataTotal: 30, Mode: PoolReadOnly, Discard: DiscardIgnored,
		},
		"Fail":  {Mode: PoolFailed},
		"Error": {Mode: PoolError},
	} {
		if got, err := ParsePoolStatus(line); err != nil || got != want {
			t.Errorf("%q is %+v, %v, expected %+v", line, got, err, want)
		}
	}
	for _, line := range []string{
		"", "fail", "1", "1 2/3 4/5 - rw discard_passdown", "1 2 4/5 - rw discard_passdown queue_if_no_space",
		"1 2/3 4/5 - rw discard_passdown sometimes", "-1 2/3 4/5 - rw discard_passdown queue_if_no_space - 256",
		"1 2/3 4/5 - Fail discard_passdown queue_if_no_space - 256", "1 2/3 4/5 - rw discard_passdown queue_if_no_space - -",
	} {
		if got, err := ParsePoolStatus(line); err == nil || got != (PoolStatus{}) {
			t.Errorf("%q is %+v", line, got)
		}
	}
}

func TestParseThinStatus(t *testing.T) {
	for line, want := range map[string]ThinStatus{
		"0 -":        {},
		"1280 1279 ": {MappedSectors: 1280, HighestMapped: 1279},
		"-":          {Mode: ThinNone},
		"Fail":       {Mode: ThinFailed},
		"Error":      {Mode: ThinError},
	} {
		if got, err := ParseThinStatus(line); err != nil || got != want {
			t.Errorf("%q is %+v, %v, expected %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "1", "- -", "x 1", "1 x"} {
		if got, err := ParseThinStatus(line); err == nil || got != (ThinStatus{}) {
			t.Errorf("%q is %+v", line, got)
		}
	}
}

func TestTargets(t *testing.T) {
	pool := ThinPool{Metadata: DevNum{7, 1}, Data: DevNum{7, 0}, BlockSectors: 128, LowWaterBlocks: 32}
	if got := pool.Target(131072); got != (Target{Length: 131072, Type: "thin-pool", Params: "7:1 7:0 128 32 0 "}) {
		t.Errorf("%+v", got)
	}
	pool.SkipBlockZeroing, pool.IgnoreDiscard, pool.NoDiscardPassdown, pool.ReadOnly, pool.ErrorIfNoSpace = true, true, true, true, true
	want := "7:1 7:0 128 32 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space "
	if got := pool.Target(1).Params; got != want {
		t.Errorf("%q, expected %q", got, want)
	}
	thin := Thin{Pool: DevNum{254, 0}, ID: 3, ExternalOrigin: DevNum{7, 2}}
	if got := thin.Target(8); got != (Target{Length: 8, Type: "thin", Params: "254:0 3 7:2"}) {
		t.Errorf("%+v", got)
	}
	linear := Linear{Dev: DevNum{8, 16}, Offset: 2048}
	if got := linear.Target(64, 128); got != (Target{Start: 64, Length: 128, Type: "linear", Params: "8:16 2048"}) {
		t.Errorf("%+v", got)
	}
}

func TestModeWords(t *testing.T) {
	for got, want := range map[string]string{
		PoolOutOfDataSpace.String(): "out_of_data_space", PoolError.String(): "Error", PoolMode(9).String(): "PoolMode(9)",
		DiscardIgnored.String(): "ignore_discard", DiscardMode(-1).String(): "DiscardMode(-1)",
	} {
		if got != want {
			t.Errorf("%s, expected %s", got, want)
		}
	}
}
