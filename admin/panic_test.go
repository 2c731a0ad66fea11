package admin

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"

	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
)

const panicsEnv = "LAMINA_TEST_ADMIN_PANICS"

// A panic ends the process, and says where it was.
func TestPanicEnds(t *testing.T) {
	if os.Getenv(panicsEnv) != "" {
		boom := object(http.MethodGet, "/boom", "", quickTime, func(*http.Request) (any, error) { panic("boom") })
		tRaw(t, tServe(t, &fake{}, boom), "GET /boom HTTP/1.0\r\n\r\n")
		return
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPanicEnds$")
	child.Env = append(os.Environ(), panicsEnv+"=1")
	out, err := child.CombinedOutput()
	require.Error(t, err, "%s", out)
	require.Contains(t, string(out), "panic: boom")
	require.Contains(t, string(out), "TestPanicEnds.func", "where it was")
}

// An answer that is cut off ends nothing else.
func TestAbortEndsNothing(t *testing.T) {
	h := EndOnPanic(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	})
}

func TestErrorLog(t *testing.T) {
	var out bytes.Buffer
	logger := log.L.Dup()
	logger.Logger.SetOutput(&out)
	t.Cleanup(func() { logger.Logger.SetOutput(os.Stderr) })
	_, err := io.WriteString(ErrorLog(log.WithLogger(t.Context(), logger)).Writer(), "http: no more files\n")
	require.NoError(t, err)
	require.Contains(t, out.String(), "http: no more files")
}
