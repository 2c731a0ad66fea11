package snapshotter

import (
	"context"
	"fmt"
)

// reserveProject returns a project id for a new content, or 0 where the backend has none. One that somebody else has on the same
// file system is passed over, and stays reserved so that it is not asked for again before the next start.
func (s *Set) reserveProject(ctx context.Context, b Backend) (uint32, error) {
	p, ok := b.(Projecter)
	if !ok {
		return 0, nil
	}
	first, last := p.Projects()
	if first == 0 {
		return 0, nil
	}
	for {
		project, err := s.store.ReserveProject(first, last)
		if err != nil {
			return 0, err
		}
		taken, err := p.ProjectTaken(project)
		if err == nil && !taken {
			return project, nil
		}
		if err == nil {
			err = ctx.Err() // there may be many
		}
		if err != nil {
			s.store.ReleaseProject(project)
			return 0, fmt.Errorf("project id %d: %w", project, err)
		}
	}
}
