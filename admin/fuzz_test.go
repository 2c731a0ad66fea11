package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
)

// A stub answers any question, and refuses no change.
type stub struct{ Source }

func (stub) Status(context.Context) (Status, error)                { return Status{}, nil }
func (stub) Snapshots(context.Context, func(Snapshot) error) error { return nil }
func (stub) Inspect(_ context.Context, n, k string) (Inspection, error) {
	return Inspection{Snapshot: Snapshot{Name: n, Key: k}}, nil
}
func (stub) Space(context.Context, func(int, int), func(Space) error) error { return nil }
func (stub) Cleanup(context.Context) error                                  { return nil }
func (stub) GrowPool(context.Context, uint64) (Pool, error)                 { return Pool{}, nil }
func (stub) TrimPool(context.Context) (uint64, error)                       { return 0, nil }
func (stub) AddDevice(context.Context, string) error                        { return nil }

// FuzzRequest asks the admin socket anything: each answer is JSON, with a status of its own.
func FuzzRequest(f *testing.F) {
	for _, path := range []string{
		"/", statusPath, snapshotsPath, snapshotsPath + "/lamina?key=k", snapshotsPath + "/..%2f..?key=%00", growPath + "?bytes=1", growPath + "?bytes=-1",
		growPath + "?bytes=1&bytes=2", devicesPath + "?device=../x", spacePath + "?progress=1", "/%ff?root=/x", "//v1/../v1/status", "/?;%",
	} {
		f.Add(http.MethodGet, path, "")
		f.Add(http.MethodPost, path, "body")
	}
	h := Handler("/root", stub{}, stub{})
	f.Fuzz(func(t *testing.T, method, target, body string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || strings.ContainsAny(method, " \r\n") || method == "" {
			return // net/http lets no such request in
		}
		r := httptest.NewRequest(http.MethodGet, "/", io.Reader(strings.NewReader(body)))
		r.Method, r.URL, r.RequestURI = method, u, target
		r = r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{pid: 1, uid: uint32(os.Geteuid())}))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 300 && w.Code < 400 {
			return // the mux cleans paths
		}
		for line := range bytes.Lines(w.Body.Bytes()) {
			if !json.Valid(line) {
				t.Errorf("%s %q: %d: %q", method, target, w.Code, line)
			}
		}
	})
}
