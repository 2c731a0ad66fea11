package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lamina-snapshotter/lamina/admin"
)

func daemonNumbers() (n numbers[*admin.Status]) {
	n.add(prometheus.GaugeValue, "lamina_start_time_seconds", "When the daemon was started, as seconds since 1970.",
		func(s *admin.Status) (float64, bool) {
			if s.Started == nil {
				return 0, false
			}
			return seconds(*s.Started), true
		})
	n.gauge("lamina_store_size_bytes", "The size of the store's file.",
		func(s *admin.Status) float64 { return float64(s.Store.Bytes) })
	n.gauge("lamina_store_failed", "Whether the store takes no more writes, as a commit could not be made durable: 1 or 0.",
		func(s *admin.Status) float64 { return boolean(s.Store.Failed != "") })
	n.add(prometheus.CounterValue, "lamina_store_commits_total", "Commits of the store.",
		func(s *admin.Status) (float64, bool) {
			if s.Store.Commits == nil {
				return 0, false
			}
			return float64(s.Store.Commits.Writes.Count), true
		})
	return n
}

func backendNumbers() numbers[*admin.Backend] {
	n := numbers[*admin.Backend]{labels: []string{"backend"}}
	n.gauge("lamina_backend_usable", "Whether the backend can be used: 1, or 0 if it was set aside to be repaired.",
		func(b *admin.Backend) float64 { return boolean(b.Problem == "") })
	n.gauge("lamina_trash_contents", "Contents that are removed and not deleted yet.",
		func(b *admin.Backend) float64 { return float64(b.Trash) })
	n.gauge("lamina_trash_waiting", "Removed contents that somebody still uses, so that they cannot be deleted.",
		func(b *admin.Backend) float64 { return float64(b.Waiting) })
	n.gauge("lamina_trash_oldest_seconds", "How long the deletion that has been tried longest takes already; 0 if none is tried.",
		func(b *admin.Backend) float64 { return orZero(b.Oldest) })
	n.counter("lamina_deletions_total", "Contents that were deleted.",
		func(b *admin.Backend) float64 { return float64(b.Deleted) })
	n.counter("lamina_deletion_failures_total", "Deletions that failed, each to be tried again.",
		func(b *admin.Backend) float64 { return float64(b.DeletionsFailed) })
	return n
}

func diskNumbers() numbers[*admin.Disk] {
	n := numbers[*admin.Disk]{labels: []string{"backend"}}
	n.gauge("lamina_disk_size_bytes", "The size of the file system that the backend's root lies on.",
		func(d *admin.Disk) float64 { return float64(d.Total) })
	n.gauge("lamina_disk_used_bytes", "How much of that file system is used, by whomever.",
		func(d *admin.Disk) float64 { return float64(d.Used) })
	n.gauge("lamina_disk_available_bytes", "How much of that file system is free for who is not root.",
		func(d *admin.Disk) float64 { return float64(d.Free) })
	inodes := func(value func(*admin.Disk) uint64) func(*admin.Disk) (float64, bool) {
		return func(d *admin.Disk) (float64, bool) { return float64(value(d)), d.Inodes.Total > 0 }
	}
	n.add(prometheus.GaugeValue, "lamina_disk_inodes", "How many inodes that file system can have, where it counts them.",
		inodes(func(d *admin.Disk) uint64 { return d.Inodes.Total }))
	n.add(prometheus.GaugeValue, "lamina_disk_inodes_used", "How many of its inodes are used.",
		inodes(func(d *admin.Disk) uint64 { return d.Inodes.Used }))
	return n
}

func poolNumbers() (n numbers[*admin.Pool]) {
	n.gauge("lamina_pool_data_size_bytes", "The size of the pool's data.",
		func(p *admin.Pool) float64 { return float64(p.Data.Total) })
	n.gauge("lamina_pool_data_used_bytes", "How much of the pool's data is allocated.",
		func(p *admin.Pool) float64 { return float64(p.Data.Used) })
	n.gauge("lamina_pool_metadata_size_bytes", "The size of the pool's metadata.",
		func(p *admin.Pool) float64 { return float64(p.Metadata.Total) })
	n.gauge("lamina_pool_metadata_used_bytes", "How much of the pool's metadata is allocated.",
		func(p *admin.Pool) float64 { return float64(p.Metadata.Used) })
	n.gauge("lamina_pool_needs_check", "Whether the kernel has marked the pool's metadata as to be checked: 1 or 0.",
		func(p *admin.Pool) float64 { return boolean(p.NeedsCheck) })
	n.gauge("lamina_pool_transaction_id", "The transaction id in the pool's metadata: the starts that it has seen.",
		func(p *admin.Pool) float64 { return float64(p.TransactionID) })
	n.counter("lamina_pool_growths_total", "How often the pool has grown.",
		func(p *admin.Pool) float64 { return float64(p.Grown) })
	n.gauge("lamina_pool_volumes", "Volumes in the pool: of snapshots, of templates, and removed ones that are not deleted yet.",
		func(p *admin.Pool) float64 { return float64(p.Volumes) })
	n.gauge("lamina_pool_reserve_bytes", "How much of the pool's data is kept for containers that run.",
		func(p *admin.Pool) float64 { return float64(p.Reserve) })
	n.gauge("lamina_pool_silent_seconds", "For how long the kernel has not answered for the pool, whose other numbers are as old; 0 if it does.",
		func(p *admin.Pool) float64 { return orZero(p.Silent) })
	n.add(prometheus.GaugeValue, "lamina_pool_headroom_bytes", "By how much the pool's data can still grow.",
		func(p *admin.Pool) (float64, bool) { return known(p.Headroom) })
	n.add(prometheus.GaugeValue, "lamina_pool_room_bytes", "How much can be written until nothing is left: in the pool with its headroom, and on what it lies on.",
		func(p *admin.Pool) (float64, bool) { return known(p.Room) })
	n.add(prometheus.GaugeValue, "lamina_pool_data_rate_bytes_per_second",
		"By how much the allocated data has risen of late; negative if it fell. Missing in the first minute.",
		func(p *admin.Pool) (float64, bool) { return known(p.Rate) })
	n.add(prometheus.GaugeValue, "lamina_pool_time_to_full_seconds",
		"How long the room lasts at the rate of late. Missing while the data do not rise.",
		func(p *admin.Pool) (float64, bool) { return known(p.TimeToFull) })
	return n
}

// known returns a number that may be missing.
func known[N uint64 | float64 | admin.Age](v *N) (float64, bool) { return orZero(v), v != nil }

func orZero[N uint64 | float64 | admin.Age](v *N) float64 {
	if v == nil {
		return 0
	}
	return float64(*v)
}
