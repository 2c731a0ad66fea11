package dmthin

import (
	"context"
	"io/fs"
	"math"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// at returns a time so many seconds after a begin.
func at(seconds int) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(seconds) * time.Second)
}

// rateOf is what a pace tells after a time, in which the watch looked each second and found that much used.
func rateOf(used func(second int) uint64, seconds int) (rate float64, ok bool) {
	var p pace
	for s := range seconds {
		p.note(at(s), used(s))
	}
	return p.rate(at(seconds), used(seconds))
}

func TestPace(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	after := func(second int, bytes uint64) func(int) uint64 { // all at once
		return func(s int) uint64 {
			if s >= second {
				return 10*gib + bytes
			}
			return 10 * gib
		}
	}
	for name, c := range map[string]struct {
		used    func(second int) uint64
		seconds int
		want    float64
	}{
		"steady":              {func(s int) uint64 { return uint64(s) * mib }, 1000, mib},
		"steady, soon":        {func(s int) uint64 { return uint64(s) * mib }, 60, mib},
		"nothing":             {func(int) uint64 { return gib }, 1000, 0},
		"falling":             {func(s int) uint64 { return 10*gib - uint64(s)*mib }, 1000, -mib},
		"a pull, just now":    {after(995, 5*gib), 1000, 0},
		"a pull, a while ago": {after(700, 5*gib), 1000, 0},
		"a pull of two minutes": {func(s int) uint64 {
			return uint64(min(max(s-650, 0), 120)) * 50 * mib
		}, 1000, 0},
		"a pull upon what is steady":        {func(s int) uint64 { return uint64(s)*mib + after(777, 5*gib)(s) }, 1000, mib},
		"a removal":                         {func(s int) uint64 { return 20*gib - after(777, 5*gib)(s) + uint64(s)*mib }, 1000, mib},
		"a log that is written each minute": {func(s int) uint64 { return uint64(s) / 60 * 60 * mib }, 1020, mib},
		"it has begun five minutes ago":     {func(s int) uint64 { return uint64(max(s-700, 0)) * mib }, 1000, mib / 2},
		"it has begun six minutes ago":      {func(s int) uint64 { return uint64(max(s-640, 0)) * mib }, 1000, mib},
	} {
		rate, ok := rateOf(c.used, c.seconds)
		require.True(t, ok, name)
		require.InDelta(t, c.want, rate, mib/100, name)
	}
	_, ok := rateOf(func(s int) uint64 { return uint64(s) * mib }, 59)
	require.False(t, ok, "a minute is the least")
}

// Hours without a look, as of a pool that hung, are no burst when it answers again; and what is kept stays small.
func TestPaceOfGaps(t *testing.T) {
	var p pace
	for s := range 100_000 {
		p.note(at(s), uint64(s))
	}
	require.LessOrEqual(t, len(p.samples), int(paceWindow/paceStep)+2)
	rate, ok := p.rate(at(104_000), 104_000)
	require.True(t, ok)
	require.InDelta(t, 1, rate, 0.01)
	p.note(at(104_000), 104_000)
	rate, ok = p.rate(at(104_100), 104_100)
	require.True(t, ok)
	require.InDelta(t, 1, rate, 0.01)
}

func TestTimeToFull(t *testing.T) {
	require.Equal(t, 100*time.Second, timeToFull(1000, 10))
	require.Zero(t, timeToFull(1000, 0))
	require.Zero(t, timeToFull(1000, -1))
	require.Zero(t, timeToFull(math.MaxUint64, 1e-9), "longer than any clock")
	require.Positive(t, timeToFull(0, 10))

	f := fill{block: 10, limits: limits{data: 1009, free: noLimit, why: "why"}}
	f.DataTotal, f.DataUsed = 80, 50
	require.EqualValues(t, 200, f.headroom())
	require.EqualValues(t, 500, f.room())
	require.Equal(t, "why", f.limit())
	f.free = 30
	require.EqualValues(t, 30, f.room(), "the disk below has no more")
	require.NotEqual(t, "why", f.limit())
	f.data = 700
	require.Zero(t, f.headroom(), "it is larger than it may become now")
}

// What a status says of a pool is what the kernel and its place say, also when it is silent, and when nobody has it open.
func TestStatus(t *testing.T) {
	c := Config{DataSize: 512 * mebibyte, MaxSize: 1 << 30, Root: filepath.Join(t.TempDir(), "thin")}
	b := openSmall(t, c)
	s, err := b.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, "rw", s.Mode)
	require.EqualValues(t, 1, s.TransactionID)
	require.EqualValues(t, 512*mebibyte, s.Data.Total)
	require.EqualValues(t, 512*mebibyte, *s.Headroom)
	require.Equal(t, 1<<30-s.Data.Used, *s.Room)
	require.EqualValues(t, 512*mebibyte/20, s.Reserve)
	require.Contains(t, s.Limit, "thin.max_size")
	require.Equal(t, []string{c.Root + "/data", c.Root + "/metadata"}, s.On)
	require.Zero(t, s.Silent)

	b.mustFillVolume(t, b.mustMake(t, 2, b.template, nil), 2, 16*mebibyte)
	later, err := b.Status(t.Context())
	require.NoError(t, err)
	require.InDelta(t, s.Data.Used+16*mebibyte, later.Data.Used, mebibyte)

	unlock, err := b.pool.lock(t.Context(), statusLock) // as a look that hangs has it
	require.NoError(t, err)
	silent, err := b.Status(t.Context())
	unlock()
	require.NoError(t, err)
	require.GreaterOrEqual(t, silent.Silent, statusWait)
	require.Equal(t, later.Data, silent.Data)
	b.mustFail(t, later)

	require.NoError(t, b.Release(t.Context(), 2))
	require.NoError(t, b.Close())
	c.Store = storeUUID
	stopped, err := LookAtStatus(t.Context(), c)
	require.NoError(t, err)
	require.Empty(t, stopped.Mode)
	require.Equal(t, later.Data, stopped.Data)
	require.Equal(t, later.Metadata.Total, stopped.Metadata.Total)
	require.Equal(t, later.BlockSize, stopped.BlockSize)
	require.Equal(t, later.Headroom, stopped.Headroom)
	require.Equal(t, later.Reserve, stopped.Reserve)
	other := &loopPlace{dir: c.Root}
	require.NoError(t, other.acquire(t.Context(), 0))
	_, err = LookAtStatus(t.Context(), c)
	require.NoError(t, err, "a look waits for no lock")
	require.NoError(t, other.close())
	c.Store = "another"
	_, err = LookAtStatus(t.Context(), c)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// mustFail wants what is no silence to be an error, beside the last state.
func (b *testBackend) mustFail(t *testing.T, last Status) {
	t.Helper()
	gone := &Backend{config: b.config, control: b.control, place: b.place, pool: &Pool{name: "lamina-gone", locks: map[uint32]*volumeLock{}}}
	gone.history.note(b.mustFill(t), time.Now())
	s, err := gone.Status(t.Context())
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Zero(t, s.Silent)
	require.Equal(t, last.Data, s.Data)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err = gone.Status(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, s.Silent)
}

// The rate of a silent pool is that of when it was seen last.
func TestStatusOfSilence(t *testing.T) {
	b := &Backend{pool: &Pool{locks: map[uint32]*volumeLock{}}}
	begin := time.Now().Add(-time.Hour)
	for s := range 1000 {
		f := fill{block: mebibyte, limits: limits{data: 1 << 50, free: noLimit}}
		f.DataTotal, f.DataUsed = 1<<20, uint64(s)
		b.history.note(f, begin.Add(time.Duration(s)*time.Second))
	}
	unlock, err := b.pool.lock(t.Context(), statusLock)
	require.NoError(t, err)
	defer unlock()
	s, err := b.Status(t.Context())
	require.NoError(t, err)
	require.Greater(t, s.Silent, 40*time.Minute)
	require.NotNil(t, s.Rate)
	require.InDelta(t, mebibyte, *s.Rate, mebibyte/100)
}

func TestGrowByHand(t *testing.T) {
	b := openSmall(t, Config{DataSize: 512 * mebibyte, MaxSize: 1 << 30, BlockSize: 192 << 10})
	before := b.mustFill(t).dataTotal()
	require.NoError(t, b.Grow(t.Context(), 100*mebibyte+1))
	after := b.mustFill(t).dataTotal()
	require.Greater(t, after, before+100*mebibyte)
	require.Less(t, after, before+102*mebibyte)
	s, err := b.Status(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, s.Grown)

	err = b.Grow(t.Context(), *s.Headroom+1)
	require.True(t, errdefs.IsResourceExhausted(err), err)
	require.ErrorContains(t, err, "thin.max_size, 1GiB: raise that")
	require.Equal(t, after, b.mustFill(t).dataTotal())
	require.NoError(t, b.Grow(t.Context(), *s.Headroom))
	require.EqualValues(t, 1<<30/b.pool.block*b.pool.block, b.mustFill(t).dataTotal())
	require.True(t, errdefs.IsInvalidArgument(b.Grow(t.Context(), 0)))
}
