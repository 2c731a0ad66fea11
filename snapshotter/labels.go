package snapshotter

import (
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/lamina-snapshotter/lamina/metadata"
)

// info returns what is told of a snapshot: what the store knows, and what its backend adds.
func (s *Set) info(sn metadata.Snapshot) snapshots.Info {
	info := sn.Info()
	if more := s.labels(sn); len(more) > 0 {
		info.Labels = maps.Clone(info.Labels)
		if info.Labels == nil {
			info.Labels = map[string]string{}
		}
		maps.Copy(info.Labels, more)
	}
	return info
}

// labels returns what the backend of a snapshot adds to its labels. A view has no content, and so none.
func (s *Set) labels(sn metadata.Snapshot) map[string]string {
	l, ok := s.backends[sn.Placement.Medium].(Labeler)
	if !ok {
		return nil
	}
	return l.Labels(contentOf(sn.Link()))
}

// given returns the labels that a client sets, without those that a backend adds: a client may give back what it was told,
// of a view too, which has none, or of a snapshot that another backend has.
func (s *Set) given(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	for _, b := range s.backends {
		l, ok := b.(Labeler)
		if !ok {
			continue
		}
		for label := range l.Labels(Content{}) {
			delete(labels, label)
		}
	}
	return labels
}
