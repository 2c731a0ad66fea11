package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// lockWait bounds the wait for other calls on the same snapshots.
const lockWait = time.Minute

// errBusy is returned when other calls hold a snapshot for longer than lockWait.
var errBusy = errors.New("another call is at work on it")

// lockTable holds a lock for each key in use. The zero value is ready.
type lockTable struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

// keyLock is a fair lock that many may share. refs counts holders and waiters.
type keyLock struct {
	sem  *semaphore.Weighted
	refs int
}

// A claim is a wish to hold a key, alone or shared.
type claim struct {
	key    string
	weight int64
}

const exclusiveWeight = math.MaxInt64

func exclusive(key string) claim { return claim{key, exclusiveWeight} }
func shared(key string) claim    { return claim{key, 1} }

// acquire takes all claims, in the order of their keys, and returns what releases them. Claims of no key are ignored; of
// several on one key the strongest counts.
func (l *lockTable) acquire(ctx context.Context, claims ...claim) (release func(), err error) {
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(b.weight, a.weight))
	})
	claims = slices.CompactFunc(claims, func(a, b claim) bool { return a.key == b.key })
	waitCtx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	var held []claim
	release = func() {
		for _, c := range slices.Backward(held) {
			l.release(c)
		}
	}
	for _, c := range claims {
		if c.key == "" {
			continue
		}
		if err := l.hold(waitCtx, c); err != nil {
			release()
			if ctx.Err() == nil {
				err = errBusy
			}
			return nil, err
		}
		held = append(held, c)
	}
	return release, nil
}

func (l *lockTable) hold(ctx context.Context, c claim) error {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = map[string]*keyLock{}
	}
	k := l.locks[c.key]
	if k == nil {
		k = &keyLock{sem: semaphore.NewWeighted(exclusiveWeight)}
		l.locks[c.key] = k
	}
	k.refs++
	l.mu.Unlock()
	err := k.sem.Acquire(ctx, c.weight)
	if err != nil {
		l.drop(c.key, k)
	}
	return err
}

func (l *lockTable) release(c claim) {
	l.mu.Lock()
	k := l.locks[c.key]
	l.mu.Unlock()
	k.sem.Release(c.weight)
	l.drop(c.key, k)
}

func (l *lockTable) drop(key string, k *keyLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.refs--; k.refs == 0 {
		delete(l.locks, key)
	}
}
