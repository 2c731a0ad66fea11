package main

import (
	"fmt"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// A sentList is a stream that keeps what it is sent.
type sentList struct {
	snapshotsapi.Snapshots_ListServer

	sent []*snapshotsapi.ListSnapshotsResponse
}

func (s *sentList) Send(r *snapshotsapi.ListSnapshotsResponse) error {
	s.sent = append(s.sent, r)
	return nil
}

// A List is sent whole and in its order, in messages that are no larger than they may be, but for a snapshot that alone is.
func TestCountedList(t *testing.T) {
	for _, tc := range []struct {
		infos, size int // of each
		large       []int
		messages    int
	}{
		{infos: 0, messages: 1},
		{infos: 1, messages: 1},
		{infos: 100, messages: 1},
		{infos: 100, size: 1000, messages: 4},
		{infos: 1, large: []int{0}, messages: 1},
		{infos: 100, large: []int{0}, messages: 2},
		{infos: 100, large: []int{50}, messages: 3},
		{infos: 100, large: []int{99}, messages: 2},
		{infos: 100, large: []int{49, 50}, messages: 4},
		{infos: 2, size: maxListed / 2, messages: 2},
	} {
		r := &snapshotsapi.ListSnapshotsResponse{}
		var want []string
		for i := range tc.infos {
			want = append(want, fmt.Sprint(i))
			r.Info = append(r.Info, &snapshotsapi.Info{Name: want[i], Parent: strings.Repeat("x", tc.size)})
		}
		for _, i := range tc.large {
			r.Info[i].Parent = strings.Repeat("x", 2*maxListed)
		}
		stream := &sentList{}
		c := &countedList{Snapshots_ListServer: stream}
		require.NoError(t, c.Send(r))
		require.Equal(t, tc.infos, c.listed)
		require.Len(t, stream.sent, tc.messages, tc)
		var got []string
		for _, message := range stream.sent {
			size := 0
			for _, info := range message.GetInfo() {
				got = append(got, info.GetName())
				size += proto.Size(info)
			}
			require.True(t, size <= maxListed || len(message.GetInfo()) == 1, "%v: %d bytes", tc, size)
		}
		require.Equal(t, want, got, tc)
	}
}
