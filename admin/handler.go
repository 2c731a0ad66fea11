package admin

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"
)

// Handler answers for a Source and a Changer of a root, and serves more besides. Only what a Server lets in is answered: each request must come
// from a process of root's, or of this process's user.
func Handler(root string, source Source, changer Changer, more ...Endpoint) http.Handler {
	all := append(append(questions(source), changes(changer)...), more...)
	g := gate{root: root, writeTime: writeTime}
	return g.handler(append(all, index(all)))
}

func (g gate) handler(all []Endpoint) http.Handler {
	mux := http.NewServeMux()
	for _, e := range all {
		pattern := e.Path
		if pattern == "/" {
			pattern = "/{$}"
		}
		mux.Handle(e.Method+" "+pattern, g.guard(e))
	}
	none := object("", "/", "", quickTime, func(r *http.Request) (any, error) {
		return nil, fmt.Errorf("there is no %s %s here, GET / lists what there is: %w", r.Method, r.URL.EscapedPath(), errdefs.ErrNotFound)
	})
	mux.Handle("/", g.guard(none))
	return mux
}

// index is the list of endpoints.
func index(all []Endpoint) Endpoint {
	type entry struct {
		Method string  `json:"method"`
		Path   string  `json:"path"`
		Says   string  `json:"says"`
		Limit  float64 `json:"limit"` // seconds
	}
	var list []entry
	for _, e := range all {
		list = append(list, entry{e.Method, e.Path, e.Says, e.Limit.Seconds()})
	}
	return object(http.MethodGet, "/", "this list", quickTime, func(*http.Request) (any, error) {
		return map[string][]entry{"endpoints": list}, nil
	})
}

const (
	statusPath    = "/v1/status"
	snapshotsPath = "/v1/snapshots"
	spacePath     = "/v1/space"
	poolPath      = "/v1/pool"
	cleanupPath   = "/v1/cleanup"
	growPath      = "/v1/pool/grow"
	trimPath      = "/v1/pool/trim"
	devicesPath   = "/v1/pool/devices"
)

func questions(source Source) []Endpoint {
	return []Endpoint{
		object(http.MethodGet, statusPath, "what there is at this moment", quickTime, func(r *http.Request) (any, error) {
			return source.Status(r.Context())
		}),
		object(http.MethodGet, poolPath, "the thin pool", quickTime, func(r *http.Request) (any, error) {
			return poolOf(r, source)
		}),
		Lines(snapshotsPath, "all snapshots, a parent before its children", walkTime, source.Snapshots),
		object(http.MethodGet, snapshotsPath+"/{name}", "the snapshot ?key= of a snapshotter name", quickTime, func(r *http.Request) (any, error) {
			key, err := argument(r, "key")
			if err != nil {
				return nil, err
			}
			return source.Inspect(r.Context(), r.PathValue("name"), key)
		}),
		lines(spacePath, "what deletions would give back; with ?progress=1 also how far it is", longTime, func(r *http.Request, s *sender) error {
			progress := s.progress
			if r.URL.Query().Get("progress") != "1" {
				progress = nil
			}
			return source.Space(r.Context(), progress, func(one Space) error { return s.send(one) })
		}),
	}
}

func poolOf(r *http.Request, source Source) (any, error) {
	status, err := source.Status(r.Context())
	if err != nil {
		return nil, err
	}
	for _, b := range status.Backends {
		if b.Pool != nil {
			return b.Pool, nil
		}
		if b.Name == "thin" && b.Problem != "" {
			return nil, fmt.Errorf("the thin backend cannot be used: %s: %w", b.Problem, errdefs.ErrUnavailable)
		}
	}
	return nil, fmt.Errorf("there is no pool: %w", errdefs.ErrNotFound)
}

// A trimmed is the answer to a trim.
type trimmed struct {
	Bytes uint64 `json:"bytes"`
}

func changes(changer Changer) []Endpoint {
	done := struct{}{}
	return []Endpoint{
		change(cleanupPath, "delete what has been removed, and wait for it", func(r *http.Request) (any, error) {
			return done, changer.Cleanup(r.Context())
		}),
		change(growPath, "make the pool's data at least ?bytes= larger", func(r *http.Request) (any, error) {
			text, err := argument(r, "bytes")
			if err != nil {
				return nil, err
			}
			bytes, err := strconv.ParseUint(text, 10, 63)
			if err != nil || bytes == 0 {
				return nil, fmt.Errorf("bytes: %q is no number of bytes: %w", text, errdefs.ErrInvalidArgument)
			}
			ctx, cancel := begun(r)
			defer cancel()
			return changer.GrowPool(ctx, bytes)
		}),
		change(trimPath, "give what the pool does not use back to what it lies on", func(r *http.Request) (any, error) {
			bytes, err := changer.TrimPool(r.Context())
			return trimmed{bytes}, err
		}),
		change(devicesPath, "take the block device ?device= into the pool", func(r *http.Request) (any, error) {
			device, err := argument(r, "device")
			if err != nil {
				return nil, err
			}
			ctx, cancel := begun(r)
			defer cancel()
			return done, changer.AddDevice(ctx, device)
		}),
	}
}

// begun returns a context for what is not to be left half done when the client goes.
func begun(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(r.Context()), begunTime,
		fmt.Errorf("it has taken more than %s: %w", begunTime, context.DeadlineExceeded))
}

// argument returns a value of the query that has to be there, once.
func argument(r *http.Request, name string) (string, error) {
	values := r.URL.Query()[name]
	if len(values) != 1 || values[0] == "" {
		return "", fmt.Errorf("%s needs one %s=: %w", r.URL.Path, name, errdefs.ErrInvalidArgument)
	}
	return values[0], nil
}
