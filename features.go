package lamina

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/lamina-snapshotter/lamina/dmthin"
	"github.com/lamina-snapshotter/lamina/internal/features"
	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

// ErrUntried is the reason of a Feature that could not be tried, and says what kept it from that.
var ErrUntried = features.ErrUntried

// A Feature is something that a driver may be able to do, and whether it can on this host: it can if Err is nil.
type Feature = features.Feature

// featuresTimeout bounds the probes of each backend, which take a second or two unless a disk hangs. The last one has some
// seconds more to leave (features.Run).
const featuresTimeout = 25 * time.Second

// Features tries what each driver can do on this host: on the file system of c.Root or, if that is still to be made, of the
// directory that it will be made in. It leaves nothing behind, and a daemon may have the root open meanwhile. It takes root;
// without, it says what could not be tried.
func Features(ctx context.Context, c Config) ([]Feature, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, featuresTimeout)
	defer cancel()
	// Side by side, as what hangs in one must not take the time of the other.
	backends := [][]features.Probe{c.unionProbes(), c.thinProbes()}
	answers := make([][]Feature, len(backends))
	var wg sync.WaitGroup
	for i, probes := range backends {
		wg.Go(func() { answers[i] = features.Run(ctx, probes) })
	}
	wg.Wait()
	var all []Feature
	for _, a := range answers {
		all = append(all, a...)
	}
	return all, nil
}

func (c Config) unionProbes() []features.Probe {
	c.Union.Root = filepath.Join(c.Root, "union")
	return overlayaufs.Probes(c.Union)
}

func (c Config) thinProbes() []features.Probe {
	c.Thin.Root = filepath.Join(c.Root, "thin")
	return dmthin.Probes(c.Thin)
}
