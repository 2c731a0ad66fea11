package admin

import (
	"bufio"
	"io"
	"net/http"
	"testing"
)

// tAnswer reads an answer.
func tAnswer(t *testing.T, conn io.Reader) (int, string) {
	t.Helper()
	reply, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Error(err)
	}
	return reply.StatusCode, string(body)
}
