package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestKernelPool(t *testing.T) {
	c := tDM(t)
	pool, described := tPool(t, c)
	table, err := c.Table(pool.Name)
	if err != nil || len(table) != 1 || table[0] != described.Target(poolSectors) {
		t.Errorf("%+v, %v, expected %+v", table, err, described.Target(poolSectors))
	}
	before := mustPool(t, c, pool.Name)
	want := PoolStatus{
		MetadataUsed: before.MetadataUsed, MetadataTotal: 1024, DataTotal: poolBlocks,
		Discard: before.Discard, ErrorIfNoSpace: true, MetadataLowWater: before.MetadataLowWater,
	}
	if before != want || before.MetadataUsed == 0 {
		t.Errorf("%+v, expected %+v", before, want)
	}

	mustDo(t, c.CreateThin(pool.Name, 1))
	wantErrno(t, c.CreateThin(pool.Name, 1), unix.EEXIST)
	wantErrno(t, c.CreateSnap(pool.Name, 2, 9), unix.ENODATA)
	wantErrno(t, c.DeleteThin(pool.Name, 9), unix.ENODATA)
	none := tDevice(t, c, "")
	wantErrno(t, c.Load(none.Name, false, Thin{Pool: pool.Dev, ID: 9}.Target(8)), unix.ENODATA)

	thin := tActive(t, c, false, Thin{Pool: pool.Dev, ID: 1}.Target(20480))
	wantErrno(t, c.DeleteThin(pool.Name, 1), unix.EBUSY)
	wantErrno(t, c.Remove(pool.Name), unix.EBUSY)
	if status := mustThin(t, c, thin.Name); status != (ThinStatus{}) {
		t.Errorf("%+v", status)
	}
	mustDo(t, write(thin.Name, 10*poolBlock*512))
	filled := ThinStatus{MappedSectors: 10 * poolBlock, HighestMapped: 10*poolBlock - 1}
	if status := mustThin(t, c, thin.Name); status != filled {
		t.Errorf("%+v, expected %+v", status, filled)
	}

	mustDo(t, c.Suspend(thin.Name, 0))
	err = c.CreateSnap(pool.Name, 2, 1)
	mustDo(t, c.Resume(thin.Name))
	mustDo(t, err)
	snap := tActive(t, c, true, Thin{Pool: pool.Dev, ID: 2}.Target(20480))
	if status := mustThin(t, c, snap.Name); status != filled {
		t.Errorf("%+v, expected %+v", status, filled)
	}
	if text := tRun(t, "head", "-c", "8", Node(snap.Name)); text != "lamina." {
		t.Errorf("the snapshot holds %q", text)
	}
	wantErrno(t, write(snap.Name, 8), unix.EPERM)
	// dmsetup asks for a commit; after it both see the same.
	said := tRun(t, "dmsetup", "status", pool.Name)
	_, line, _ := strings.Cut(said, " thin-pool ")
	witness, err := ParsePoolStatus(line)
	mustDo(t, err)
	if now := mustPool(t, c, pool.Name); now != witness || now.DataUsed != 10 {
		t.Errorf("%+v, dmsetup says %+v", now, witness)
	}

	mustDo(t, c.Remove(snap.Name))
	mustDo(t, c.DeleteThin(pool.Name, 2))
	_, err = c.ThinStatus(pool.Name)
	wantErrno(t, err, unix.EINVAL)
	mustDo(t, c.Remove(thin.Name))
}

func TestKernelPoolNumbers(t *testing.T) {
	c := tDM(t)
	pool, _ := tPool(t, c)
	mustDo(t, c.SetTransactionID(pool.Name, 0, 1<<63))
	wantErrno(t, c.SetTransactionID(pool.Name, 0, 1), unix.EINVAL)
	if status := mustPool(t, c, pool.Name); status.TransactionID != 1<<63 || status.HeldRoot != 0 {
		t.Errorf("%+v", status)
	}
	mustDo(t, c.ReserveMetadataSnap(pool.Name))
	wantErrno(t, c.ReserveMetadataSnap(pool.Name), unix.EBUSY)
	if status := mustPool(t, c, pool.Name); status.HeldRoot == 0 {
		t.Errorf("%+v", status)
	}
	mustDo(t, c.ReleaseMetadataSnap(pool.Name))
	wantErrno(t, c.ReleaseMetadataSnap(pool.Name), unix.EINVAL)
	if _, err := c.Message(pool.Name, 0, "hello"); !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
	// What answers: the statistics, which every device has.
	region, err := c.Message(pool.Name, 0, "@stats_create - /1 - lamina")
	if err != nil || region != "0" {
		t.Errorf("%q, %v", region, err)
	}
	if list, err := c.Message(pool.Name, 0, "@stats_list"); err != nil || !strings.HasSuffix(list, "lamina -\n") && !strings.Contains(list, " lamina") {
		t.Errorf("%q, %v", list, err)
	}
}

// TestKernelFullPool fills a pool: writes fail, and its status says why.
func TestKernelFullPool(t *testing.T) {
	c := tDM(t)
	pool, _ := tPool(t, c)
	mustDo(t, c.CreateThin(pool.Name, 1))
	thin := tActive(t, c, false, Thin{Pool: pool.Dev, ID: 1}.Target(2*poolSectors))
	t.Cleanup(func() { mustDo(t, c.Remove(thin.Name)) })
	if err := write(thin.Name, 80<<20); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		t.Errorf("80 MiB into 64: %v", err)
	}
	status := mustPool(t, c, pool.Name)
	if status.Mode != PoolOutOfDataSpace || status.DataUsed != status.DataTotal || status.NeedsCheck {
		t.Errorf("%+v", status)
	}
}

// TestKernelWaitEvent waits for the low water mark, for a removal, and in vain.
func TestKernelWaitEvent(t *testing.T) {
	c := tDM(t)
	pool, _ := tPool(t, c)
	mustDo(t, c.CreateThin(pool.Name, 1))
	thin := tActive(t, c, false, Thin{Pool: pool.Dev, ID: 1}.Target(20480))
	seen := mustInfo(t, c, pool.Name).EventNr

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := c.WaitEvent(ctx, pool.Name, seen); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if nr, err := c.WaitEvent(t.Context(), pool.Name, seen-1); err != nil || nr != seen {
		t.Errorf("event %d, %v, expected %d", nr, err, seen)
	}

	type result struct {
		nr  uint32
		err error
	}
	results := make(chan result, 3)
	wait := func(name string) {
		nr, err := c.WaitEvent(t.Context(), name, seen)
		results <- result{nr, err}
	}
	for range cap(results) {
		go wait(pool.Name)
	}
	start = time.Now()
	mustDo(t, write(thin.Name, 16*poolBlock*512))
	for range cap(results) {
		if r := <-results; r.err != nil || r.nr != seen+1 {
			t.Errorf("event %d, %v, expected %d", r.nr, r.err, seen+1)
		}
	}
	if took := time.Since(start); took > recheck/2 {
		t.Errorf("woken after %v", took)
	}

	mustDo(t, c.Remove(thin.Name))
	seen = mustInfo(t, c, pool.Name).EventNr
	go wait(pool.Name)
	mustDo(t, c.Remove(pool.Name))
	if r := <-results; r.err == nil {
		_, r.err = c.WaitEvent(t.Context(), pool.Name, r.nr) // an event came with the removal, and was seen first
		wantErrno(t, r.err, unix.ENXIO)
	} else {
		wantErrno(t, r.err, unix.ENXIO)
	}
}

// TestKernelSuspendWaits suspends a device that has I/O under way, while the program is showered with signals.
func TestKernelSuspendWaits(t *testing.T) {
	c := tDM(t)
	lower := tActive(t, c, false, Target{Length: 2048, Type: "linear", Params: tLoop(t, 1<<20).String() + " 0"})
	upper := tActive(t, c, false, Target{Length: 2048, Type: "linear", Params: lower.Dev.String() + " 0"})
	t.Cleanup(func() { mustDo(t, c.Remove(upper.Name)) })
	mustDo(t, c.Suspend(lower.Name, SkipLockFS))
	written, suspended := make(chan error, 1), make(chan error, 1)
	go func() { written <- write(upper.Name, 4096) }()
	tInFlight(t, upper.Dev)
	go func() {
		runtime.LockOSThread()
		tid := unix.Gettid()
		defer signalUntil(t, tid)()
		suspended <- c.Suspend(upper.Name, 0)
	}()
	select {
	case err := <-suspended:
		t.Errorf("suspended while I/O is under way: %v", err)
		suspended <- err
	case <-time.After(100 * time.Millisecond):
	}
	mustDo(t, c.Resume(lower.Name))
	mustDo(t, <-suspended)
	if !mustInfo(t, c, upper.Name).Suspended {
		t.Error("not suspended")
	}
	mustDo(t, c.Resume(upper.Name))
	// Not earlier: the flush after what was written may have come to a suspended device.
	mustDo(t, <-written)
}

// signalUntil signals a thread again and again until the function is called that it returns.
func signalUntil(t *testing.T, tid int) (stop func()) {
	t.Helper()
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				if err := unix.Tgkill(unix.Getpid(), tid, unix.SIGURG); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// tInFlight waits until I/O to a device is under way.
func tInFlight(t *testing.T, dev DevNum) {
	t.Helper()
	path := fmt.Sprintf("/sys/block/dm-%d/inflight", dev.Minor)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(path)
		mustDo(t, err)
		if strings.Join(strings.Fields(string(text)), " ") != "0 0" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no I/O")
		}
	}
}

// TestKernelConcurrent makes and removes volumes from several goroutines through one Control.
func TestKernelConcurrent(t *testing.T) {
	c := tDM(t)
	pool, _ := tPool(t, c)
	mustDo(t, c.CreateThin(pool.Name, 1))
	done := make(chan error)
	const workers = 8
	for w := range uint32(workers) {
		go func() {
			var err error
			for i := uint32(0); i < 5 && err == nil; i++ {
				err = snapshotOnce(c, pool, 2+w)
			}
			done <- err
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if status := mustPool(t, c, pool.Name); status.DataUsed != 0 {
		t.Errorf("%+v", status)
	}
}

// snapshotOnce makes a snapshot of volume 1, activates it, and takes both back.
func snapshotOnce(c *Control, pool Info, id uint32) error {
	name, err := snapshot(c, pool, id)
	if err != nil {
		return err
	}
	return errors.Join(c.Remove(name), c.RemoveNode(name), c.DeleteThin(pool.Name, id))
}

// snapshot makes a snapshot of volume 1 and activates it.
func snapshot(c *Control, pool Info, id uint32) (name string, err error) {
	if err := c.CreateSnap(pool.Name, id, 1); err != nil {
		return "", err
	}
	info, err := c.Create(tName(), "")
	if err != nil {
		return "", err
	}
	if err := c.Load(info.Name, false, Thin{Pool: pool.Dev, ID: id}.Target(20480)); err != nil {
		return "", err
	}
	if err := c.Resume(info.Name); err != nil {
		return "", err
	}
	return info.Name, c.MakeNode(info.Name, info.Dev)
}

// BenchmarkSnapshot makes a snapshot and activates it, and takes both back: create and remove are reported apart.
func BenchmarkSnapshot(b *testing.B) {
	c := tDM(b)
	pool, _ := tPool(b, c)
	mustDo(b, c.CreateThin(pool.Name, 1))
	var making time.Duration
	for b.Loop() {
		start := time.Now()
		name, err := snapshot(c, pool, 2)
		making += time.Since(start)
		mustDo(b, err)
		mustDo(b, errors.Join(c.Remove(name), c.RemoveNode(name), c.DeleteThin(pool.Name, 2)))
	}
	b.ReportMetric(float64(making.Microseconds())/float64(b.N), "µs/make")
}

// BenchmarkThinStatus reads how much of a volume is mapped.
func BenchmarkThinStatus(b *testing.B) {
	c := tDM(b)
	pool, _ := tPool(b, c)
	mustDo(b, c.CreateThin(pool.Name, 1))
	thin := tActive(b, c, false, Thin{Pool: pool.Dev, ID: 1}.Target(20480))
	b.Cleanup(func() { mustDo(b, c.Remove(thin.Name)) })
	for b.Loop() {
		if _, err := c.ThinStatus(thin.Name); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDmsetupSnapshot is BenchmarkSnapshot's work by dmsetup, for comparison.
func BenchmarkDmsetupSnapshot(b *testing.B) {
	c := tDM(b)
	pool, _ := tPool(b, c)
	mustDo(b, c.CreateThin(pool.Name, 1))
	for b.Loop() {
		name := tName()
		tRun(b, "dmsetup", "message", pool.Name, "0", "create_snap 2 1")
		tRun(b, "dmsetup", "create", "--noudevsync", name, "--table", "0 20480 thin "+pool.Dev.String()+" 2")
		tRun(b, "dmsetup", "remove", "--noudevsync", name)
		tRun(b, "dmsetup", "message", pool.Name, "0", "delete 2")
	}
}

func mustPool(tb testing.TB, c *Control, name string) PoolStatus {
	tb.Helper()
	status, err := c.PoolStatus(name)
	mustDo(tb, err)
	return status
}

func mustThin(tb testing.TB, c *Control, name string) ThinStatus {
	tb.Helper()
	status, err := c.ThinStatus(name)
	mustDo(tb, err)
	return status
}
