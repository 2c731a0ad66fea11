package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

var (
	_ Source  = (*Client)(nil)
	_ Changer = (*Client)(nil)
)

// ErrNoDaemon is returned when nobody listens at the address.
var ErrNoDaemon = errors.New("no daemon answers")

const (
	dialTime = 5 * time.Second
	// graceTime is by how much a client waits longer than the daemon may take.
	graceTime = 5 * time.Second
	// answerSize bounds an answer of one object.
	answerSize = 64 << 20
)

// A Client asks the daemon at a socket, about the root that it has. Its methods may be called from several goroutines at once.
type Client struct {
	address string
	root    string
	http    *http.Client
}

// NewClient connects with the first question. If root is not empty, a daemon with another root answers ErrFailedPrecondition.
func NewClient(address, root string) *Client {
	c := &Client{address: address, root: root}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTime}
			return d.DialContext(ctx, "unix", address)
		},
		DisableCompression: true,
	}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c
}

// Close gives up the connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call sends a request, and hands a good answer's body to read.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, limit time.Duration, read func(io.Reader) error) (err error) {
	limit += graceTime
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the daemon at %s has not answered within %s: %w", c.address, limit, context.DeadlineExceeded))
	defer cancel()
	if query == nil {
		query = make(url.Values)
	}
	if c.root != "" {
		query.Set("root", c.root)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://lamina"+path+"?"+query.Encode(), http.NoBody)
	if err != nil {
		return err
	}
	reply, err := c.http.Do(request)
	if err != nil {
		return c.unanswered(ctx, err)
	}
	defer func() { err = errors.Join(err, reply.Body.Close()) }()
	if reply.StatusCode != http.StatusOK {
		return refused(reply)
	}
	if err := read(reply.Body); err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) {
			return cause
		}
		return err
	}
	return nil
}

// unanswered says why there is no answer.
func (c *Client) unanswered(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w at %s", ErrNoDaemon, c.address)
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // its own text is a URL that nobody asked for
	}
	return fmt.Errorf("the daemon at %s: %w", c.address, err)
}

// refused returns the error of an answer.
func refused(reply *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(reply.Body, answerSize))
	if err != nil {
		return err
	}
	var f failure
	if json.Unmarshal(text, &f) != nil || f.Class == "" {
		return fmt.Errorf("the daemon answers %s, which is not of this version of lamina", reply.Status)
	}
	return f.native()
}

// get asks for one object.
func get[T any](ctx context.Context, c *Client, method, path string, query url.Values, limit time.Duration) (answer T, err error) {
	err = c.call(ctx, method, path, query, limit, func(in io.Reader) error {
		text, err := io.ReadAll(io.LimitReader(in, answerSize))
		if err != nil {
			return fmt.Errorf("the answer is cut off: %w", err)
		}
		return json.Unmarshal(text, &answer)
	})
	return answer, err
}

// Ask calls each with what an endpoint of Lines tells.
func Ask[T any](ctx context.Context, c *Client, path string, limit time.Duration, each func(T) error) error {
	return c.call(ctx, http.MethodGet, path, nil, limit, func(in io.Reader) error { return receive(in, nil, each) })
}

// Status is Source's.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, http.MethodGet, statusPath, nil, quickTime)
}

// Snapshots is Source's.
func (c *Client) Snapshots(ctx context.Context, each func(Snapshot) error) error {
	return Ask(ctx, c, snapshotsPath, walkTime, each)
}

// Inspect is Source's.
func (c *Client) Inspect(ctx context.Context, name, key string) (Inspection, error) {
	return get[Inspection](ctx, c, http.MethodGet, snapshotsPath+"/"+url.PathEscape(name), url.Values{"key": {key}}, quickTime)
}

// Space is Source's.
func (c *Client) Space(ctx context.Context, progress func(done, total int), each func(Space) error) error {
	query := url.Values{"progress": {"1"}}
	return c.call(ctx, http.MethodGet, spacePath, query, longTime, func(in io.Reader) error { return receive(in, progress, each) })
}

// Cleanup is Changer's.
func (c *Client) Cleanup(ctx context.Context) error {
	_, err := get[struct{}](ctx, c, http.MethodPost, cleanupPath, nil, longTime)
	return err
}

// GrowPool is Changer's.
func (c *Client) GrowPool(ctx context.Context, bytes uint64) (Pool, error) {
	return get[Pool](ctx, c, http.MethodPost, growPath, url.Values{"bytes": {strconv.FormatUint(bytes, 10)}}, longTime)
}

// TrimPool is Changer's.
func (c *Client) TrimPool(ctx context.Context) (uint64, error) {
	done, err := get[trimmed](ctx, c, http.MethodPost, trimPath, nil, longTime)
	return done.Bytes, err
}

// AddDevice is Changer's.
func (c *Client) AddDevice(ctx context.Context, device string) error {
	_, err := get[struct{}](ctx, c, http.MethodPost, devicesPath, url.Values{"device": {device}}, longTime)
	return err
}

// Page copies what an endpoint of another kind answers, the metrics' say, to out.
func (c *Client) Page(ctx context.Context, path string, out io.Writer) error {
	return c.call(ctx, http.MethodGet, path, nil, quickTime, func(in io.Reader) error {
		_, err := io.Copy(out, io.LimitReader(in, answerSize))
		return err
	})
}
