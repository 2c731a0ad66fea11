package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/metrics"
)

// A fakeSource has a Status, and counts who asks for it.
type fakeSource struct {
	status func(context.Context) (admin.Status, error)
	asked  atomic.Int32
}

func (f *fakeSource) Status(ctx context.Context) (admin.Status, error) {
	f.asked.Add(1)
	return f.status(ctx)
}

// full has a value for each metric.
func full() admin.Status {
	counts := admin.Histogram{Count: 3, Sum: 6, Buckets: []admin.Bucket{{Bound: 1, Count: 1}, {Bound: 4, Count: 2}}}
	return admin.Status{
		Started: new(time.Unix(1_700_000_000, 0)),
		Store:   admin.Store{Bytes: 4096, Commits: &admin.Commits{Writes: counts, Seconds: counts}},
		Snapshotters: []admin.Snapshotter{
			{Name: "lamina", Backend: "union", Committed: 7, Active: 2, Views: 1}, {Name: "thick", Backend: "thin", Committed: 1},
		},
		Backends: []admin.Backend{{
			Name: "union", Trash: 5, Waiting: 2, Oldest: new(admin.Age(90)), Deleted: 11, DeletionsFailed: 3,
			Disk: &admin.Disk{Total: 100, Used: 40, Free: 55, Inodes: admin.Fill{Used: 1, Total: 10}},
		}, {
			Name: "thin", Problem: "to be repaired",
			Pool: &admin.Pool{
				Mode: "ro", NeedsCheck: true, TransactionID: 9, Data: admin.Fill{Used: 30, Total: 50}, Metadata: admin.Fill{Used: 3, Total: 5},
				Volumes: 4, Reserve: 2, Headroom: new(uint64(20)), Room: new(uint64(35)), Grown: 1, Rate: new(-1.5), TimeToFull: new(admin.Age(3600)),
				Silent: new(admin.Age(7)),
			},
		}},
	}
}

func newMetrics(t *testing.T, status func(context.Context) (admin.Status, error)) (*metrics.Metrics, *fakeSource) {
	t.Helper()
	m := metrics.New(metrics.Options{Version: "v1", Snapshotters: []string{"lamina"}})
	f := &fakeSource{status: status}
	m.SetSource(f)
	return m, f
}

func good(context.Context) (admin.Status, error) { return full(), nil }

// scrape returns the lines of Lamina's own metrics.
func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	require.Equal(t, 200, w.Code, "%s", text)
	var ours []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "lamina_") {
			ours = append(ours, line)
		}
	}
	return strings.Join(ours, "")
}

func TestScrape(t *testing.T) {
	m, _ := newMetrics(t, good)
	for _, class := range []string{"OK", "NotFound", "Internal"} {
		m.Begin("lamina", "Stat").End(class)
	}
	m.Begin("nobody's", "Stat").End("InvalidArgument")
	m.Begin("lamina", "Prepare")
	text := scrape(t, m)
	for _, want := range []string{
		`lamina_build_info{goversion="go1`,
		"lamina_status_success 1\n",
		"lamina_start_time_seconds 1.7e+09\n",
		`lamina_operations_total{class="NotFound",method="Stat",snapshotter="lamina"} 1`,
		`lamina_operations_total{class="Internal",method="Stat",snapshotter="lamina"} 1`,
		`lamina_operations_total{class="Unavailable",method="Stat",snapshotter="lamina"} 0`,
		`lamina_operations_total{class="InvalidArgument",method="Stat",snapshotter="(other)"} 1`,
		`lamina_operations_in_flight{method="Prepare",snapshotter="lamina"} 1`,
		`lamina_operations_in_flight{method="Stat",snapshotter="lamina"} 0`,
		`lamina_operation_duration_seconds_count{method="Stat",snapshotter="lamina"} 3`,
		`lamina_operation_duration_seconds_bucket{method="Stat",snapshotter="lamina",le="0.0001"}`,
		`lamina_operation_duration_seconds_bucket{method="Stat",snapshotter="lamina",le="30"} 3`,
		`lamina_snapshots{backend="union",kind="active",snapshotter="lamina"} 2`,
		`lamina_snapshots{backend="thin",kind="committed",snapshotter="thick"} 1`,
		"lamina_store_size_bytes 4096\n", "lamina_store_failed 0\n", "lamina_store_commits_total 3\n",
		`lamina_store_writes_per_commit_bucket{le="4"} 2`, `lamina_store_writes_per_commit_bucket{le="+Inf"} 3`,
		"lamina_store_flush_duration_seconds_sum 6\n",
		`lamina_backend_usable{backend="union"} 1`, `lamina_backend_usable{backend="thin"} 0`,
		`lamina_trash_contents{backend="union"} 5`, `lamina_trash_waiting{backend="union"} 2`, `lamina_trash_oldest_seconds{backend="union"} 90`,
		`lamina_trash_oldest_seconds{backend="thin"} 0`,
		`lamina_deletions_total{backend="union"} 11`, `lamina_deletion_failures_total{backend="union"} 3`,
		`lamina_disk_size_bytes{backend="union"} 100`, `lamina_disk_used_bytes{backend="union"} 40`,
		`lamina_disk_available_bytes{backend="union"} 55`, `lamina_disk_inodes{backend="union"} 10`, `lamina_disk_inodes_used{backend="union"} 1`,
		"lamina_pool_data_size_bytes 50\n", "lamina_pool_data_used_bytes 30\n",
		"lamina_pool_metadata_size_bytes 5\n", "lamina_pool_metadata_used_bytes 3\n",
		`lamina_pool_mode{mode="rw"} 0`, `lamina_pool_mode{mode="ro"} 1`, "lamina_pool_needs_check 1\n",
		"lamina_pool_transaction_id 9\n", "lamina_pool_growths_total 1\n", "lamina_pool_volumes 4\n", "lamina_pool_reserve_bytes 2\n",
		"lamina_pool_headroom_bytes 20\n", "lamina_pool_room_bytes 35\n", "lamina_pool_data_rate_bytes_per_second -1.5\n",
		"lamina_pool_time_to_full_seconds 3600\n", "lamina_pool_silent_seconds 7\n",
	} {
		require.Contains(t, text, want)
	}
}

// What is not known is missing, and not 0.
func TestScrapeUnknown(t *testing.T) {
	m, _ := newMetrics(t, func(context.Context) (admin.Status, error) {
		return admin.Status{Backends: []admin.Backend{{Name: "thin", Pool: &admin.Pool{Mode: "rw"}}}}, nil
	})
	text := scrape(t, m)
	for _, missing := range []string{"start_time", "commit", "disk", "headroom", "room", "rate", "time_to_full"} {
		require.NotContains(t, text, missing)
	}
	require.Contains(t, text, `lamina_pool_mode{mode="rw"} 1`)

	m, _ = newMetrics(t, func(context.Context) (admin.Status, error) {
		return admin.Status{Backends: []admin.Backend{{Name: "thin", Pool: &admin.Pool{}}}}, nil
	})
	text = scrape(t, m)
	require.NotContains(t, text, "lamina_pool_mode", "a pool that does not run is in no mode")
	require.Contains(t, text, "lamina_pool_volumes")
}

// A call that hangs is seen beside others that return.
func TestOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New(metrics.Options{Snapshotters: []string{"lamina"}})
		begin := func() metrics.Call { return m.Begin("lamina", "Prepare") }
		oldest := func(seconds int) {
			t.Helper()
			require.Contains(t, scrape(t, m), fmt.Sprintf("lamina_operation_oldest_seconds{method=\"Prepare\",snapshotter=\"lamina\"} %d\n", seconds))
		}
		first, hangs := begin(), begin()
		first.End("OK")
		oldest(0)
		for range 5 {
			call := begin()
			time.Sleep(time.Minute)
			call.End("OK")
		}
		oldest(300)
		later := begin()
		time.Sleep(time.Second)
		hangs.End("Unknown")
		oldest(1)
		later.End("OK")
		oldest(0)
	})
}

func TestLint(t *testing.T) {
	m, _ := newMetrics(t, good)
	m.Begin("lamina", "Stat").End("OK")
	problems, err := testutil.GatherAndLint(m.Gatherer())
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, m.Check())
}

// Scrapes at once cost one Status, and ask for nothing else.
func TestScrapesShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		m, f := newMetrics(t, func(context.Context) (admin.Status, error) {
			<-release
			return full(), nil
		})
		const n = 20
		done := make(chan string, n)
		for range n {
			go func() { done <- scrape(t, m) }()
		}
		synctest.Wait()
		require.EqualValues(t, 1, f.asked.Load())
		close(release)
		for range n {
			require.Contains(t, <-done, "lamina_status_success 1\n")
		}
		require.Contains(t, scrape(t, m), "lamina_status_success 1\n")
		require.EqualValues(t, 2, f.asked.Load(), "each scrape after that tells the state anew")
	})
}

// Clients that pile up are turned away.
func TestScrapesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		m, _ := newMetrics(t, func(context.Context) (admin.Status, error) {
			<-release
			return full(), nil
		})
		h := m.Handler()
		codes := make(chan int, 33)
		for range 33 {
			go func() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
				codes <- w.Code
			}()
		}
		synctest.Wait()
		require.Equal(t, http.StatusServiceUnavailable, <-codes)
		close(release)
		for range 32 {
			require.Equal(t, http.StatusOK, <-codes)
		}
	})
}

// A client has so long to read what it asked for.
func TestScrapeHasATime(t *testing.T) {
	m, _ := newMetrics(t, good)
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	require.WithinDuration(t, time.Now().Add(30*time.Second), w.until, 10*time.Second)
}

type deadlines struct {
	*httptest.ResponseRecorder

	until time.Time
}

func (d *deadlines) SetWriteDeadline(until time.Time) error {
	d.until = until
	return nil
}

// A Status that hangs costs the first scrape its time and the others nothing. They get what was known last.
func TestScrapeOutlastsStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failures []error
		m := metrics.New(metrics.Options{Failed: func(err error) { failures = append(failures, err) }})
		require.Contains(t, scrape(t, m), "lamina_status_success 0\n", "nothing is open yet")
		require.Empty(t, failures)

		hang := make(chan struct{})
		close(hang)
		f := &fakeSource{status: func(context.Context) (admin.Status, error) {
			<-hang // whatever the context says
			return full(), nil
		}}
		m.SetSource(f)
		known := scrape(t, m)
		at := time.Now()
		hang = make(chan struct{})
		for i := range 4 {
			start := time.Now()
			text := scrape(t, m)
			if i == 0 {
				require.Equal(t, 5*time.Second, time.Since(start))
			} else {
				require.Zero(t, time.Since(start))
			}
			require.Equal(t, strings.Replace(known, "lamina_status_success 1", "lamina_status_success 0", 1), text)
			time.Sleep(time.Minute)
		}
		require.EqualValues(t, 2, f.asked.Load(), "nobody asks beside one that hangs")
		require.Len(t, failures, 1, "it is told of once")
		close(hang)
		synctest.Wait()
		require.Contains(t, scrape(t, m), "lamina_status_success 1\n")
		require.Greater(t, time.Since(at), 4*time.Minute)
		require.NotEqual(t, known, scrape(t, m), "the state is of another time")
		m.SetSource(nil)
		require.NotContains(t, scrape(t, m), "lamina_pool")
	})
}

func TestScrapeTellsOfErrors(t *testing.T) {
	broken := errors.New("the store is closed")
	var failure error
	m := metrics.New(metrics.Options{Failed: func(err error) { failure = err }})
	require.Contains(t, scrape(t, m), "lamina_status_success 0\n")
	require.NoError(t, failure, "nothing is open yet")
	m.SetSource(&fakeSource{status: func(context.Context) (admin.Status, error) { return admin.Status{}, broken }})
	require.NotContains(t, scrape(t, m), "lamina_snapshots")
	require.ErrorIs(t, failure, broken)
}

// A call costs next to nothing.
func TestCallAllocations(t *testing.T) {
	m, _ := newMetrics(t, good)
	m.Begin("lamina", "Stat").End("OK")
	require.Zero(t, testing.AllocsPerRun(100, func() { m.Begin("lamina", "Stat").End("OK") }))
	require.Zero(t, testing.AllocsPerRun(100, func() { (*metrics.Metrics)(nil).Begin("lamina", "Stat").End("OK") }))
}

func BenchmarkCall(b *testing.B) {
	m := metrics.New(metrics.Options{Snapshotters: []string{"lamina"}})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Begin("lamina", "Stat").End("NotFound")
		}
	})
}
