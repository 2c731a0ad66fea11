package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// A log has a line of each change before it is begun, with who asked, and one of how it ended.
func TestChangesAreLogged(t *testing.T) {
	logger := logrus.New()
	var lines bytes.Buffer
	logger.SetOutput(&lines)
	logger.SetFormatter(&logrus.JSONFormatter{})
	ctx := log.WithLogger(context.WithValue(t.Context(), peerKey{}, peer{pid: 17}), logrus.NewEntry(logger))
	f := &fake{}
	ask := func(path string) (said []map[string]any) {
		lines.Reset()
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, http.NoBody)
		Handler(tRoot, f, f).ServeHTTP(httptest.NewRecorder(), r)
		for line := range strings.Lines(lines.String()) {
			var fields map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &fields))
			require.EqualValues(t, 17, fields["pid"])
			require.EqualValues(t, 0, fields["uid"])
			require.Equal(t, path, fields["request"])
			said = append(said, fields)
		}
		return said
	}
	require.Empty(t, resultOf(Pool{Name: "p"}), "it has grown, and its size is not known")
	for path, result := range map[string]string{cleanupPath: "", trimPath: "bytes", growPath + "?bytes=5": "data_total", devicesPath + "?device=/dev/x": ""} {
		f.err = nil
		said := ask(path)
		require.Len(t, said, 2, path)
		require.Equal(t, "an operator's change begins", said[0]["msg"])
		require.NotContains(t, said[0], "took")
		require.Equal(t, "an operator's change is done", said[1]["msg"])
		require.Contains(t, said[1], "took")
		if result != "" {
			require.Contains(t, said[1], result)
		}
		f.err = errors.New("no")
		said = ask(path)
		require.Equal(t, "an operator's change failed", said[1]["msg"])
		require.Equal(t, "no", said[1]["error"])
		require.Contains(t, said[1], "took")
	}
}
