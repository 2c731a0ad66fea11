package snapshotter

import (
	"maps"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// labelsFor returns the labels of a snapshot as its backend is told them. Those of one that containerd unpacks a layer into
// have snapshots.LabelSnapshotRef: the backend does not know the key, and some clients say it there alone.
func labelsFor(sn metadata.Snapshot) map[string]string {
	chainID := unpackedAs(sn.Key)
	if chainID == "" || sn.Labels[snapshots.LabelSnapshotRef] != "" {
		return sn.Labels
	}
	labels := maps.Clone(sn.Labels)
	if labels == nil {
		labels = make(map[string]string, 1)
	}
	labels[snapshots.LabelSnapshotRef] = chainID
	return labels
}

// unpackedAs returns the chain id of the layer that is unpacked into the snapshot of a key, by snapshots.UnpackKeyFormat, or
// "". containerd puts its namespace and a number before the keys of its clients (createKey in core/metadata/snapshot.go).
func unpackedAs(key string) (chainID string) {
	if _, rest, ok := strings.Cut(key, "/"); ok {
		number, clients, ok := strings.Cut(rest, "/")
		if _, err := strconv.ParseUint(number, 10, 64); ok && err == nil {
			key = clients
		}
	}
	if rest, ok := strings.CutPrefix(key, snapshots.UnpackKeyPrefix+"-"); ok {
		_, chainID, _ = strings.Cut(rest, " ")
	}
	return chainID
}
