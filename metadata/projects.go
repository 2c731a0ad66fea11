package metadata

import (
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// ReserveProject returns the lowest project id from first to last that neither a record nor the trash has, and that is not
// reserved. It ends as a reservation of an id does, or by ReleaseProject.
func (s *Store) ReserveProject(first, last uint32) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.projects.takeLowest(first, last)
}

// ReleaseProject frees a reserved project id that was not recorded. 0 is none.
func (s *Store) ReleaseProject(project uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.projects.free(project)
}

// projectSet is the set of taken project ids. They have no bucket of their own: they are found in the records and the trash
// when the store is opened, which reads all of these anyway. The zero value is empty.
type projectSet struct {
	taken map[uint32]struct{}

	first uint32 // of the last search
	low   uint32 // none from first up to it is free
}

func (p *projectSet) take(project uint32) {
	if project == 0 {
		return
	}
	if p.taken == nil {
		p.taken = map[uint32]struct{}{}
	}
	p.taken[project] = struct{}{}
}

func (p *projectSet) free(project uint32) {
	delete(p.taken, project)
	p.low = min(p.low, project)
}

func (p *projectSet) takeLowest(first, last uint32) (uint32, error) {
	if first != p.first || p.low < first {
		p.first, p.low = first, first
	}
	for n := uint64(p.low); n <= uint64(last); n++ {
		if _, taken := p.taken[uint32(n)]; !taken {
			p.low = uint32(n)
			p.take(p.low)
			return p.low, nil
		}
	}
	return 0, ErrNoProject
}

// loadProjects reads which project ids are taken.
func (s *Store) loadProjects(btx *bolt.Tx) error {
	for _, bucket := range [][]byte{bucketRecords, bucketTrash} {
		err := btx.Bucket(bucket).ForEach(func(k, v []byte) error {
			link, err := decodeLink(ID(binary.BigEndian.Uint64(k)), v)
			s.projects.take(link.Placement.Project)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkProjects finds project ids that two contents have.
func (c *checker) checkProjects() error {
	owners := map[uint32]ID{}
	for _, links := range []map[ID]Link{c.records, c.trash} {
		for id, link := range links {
			project := link.Placement.Project
			if project == 0 {
				continue
			}
			other, taken := owners[project]
			owners[project] = id
			if !taken {
				continue
			}
			if err := c.report(max(id, other), "its project id %d is that of id %d too", project, min(id, other)); err != nil {
				return err
			}
		}
	}
	return c.ctx.Err()
}

// checkProject refuses a project id that a content cannot have.
func checkProject(p Placement) error {
	if p.Project != 0 && p.Medium != Directory {
		return fmt.Errorf("%w: a project id for a %s", ErrInvalid, p.Medium)
	}
	return nil
}
