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

// given returns the labels of an info without those that the backend adds: a client may give back what it was told.
func (s *Set) given(name string, info snapshots.Info) map[string]string {
	sn, err := s.store.Get(name, info.Name)
	if err != nil {
		return info.Labels // the store will say
	}
	more := s.labels(sn)
	if len(more) == 0 {
		return info.Labels
	}
	labels := maps.Clone(info.Labels)
	for label := range more {
		delete(labels, label)
	}
	return labels
}
