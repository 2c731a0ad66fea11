package main

import (
	"maps"
	"slices"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

// A node is a snapshot in the tree that parents make.
type node struct {
	admin.Snapshot

	children []*node
	shared   uint64 // what its parents take up, as far as that is recorded
	partly   bool   // it is not recorded of all of them
	depth    int
	aside    bool // it is there only for what is above it
}

// sharedText is what its parents take up, for people, if all that is recorded: a sum without some of them would be too small.
func (n *node) sharedText() string {
	if n.partly {
		return "-"
	}
	return term.Bytes(n.shared)
}

// A forest is the trees of one snapshotter name.
type forest struct {
	name  string
	roots []*node
	count int
}

type place struct{ name, key string }

// grow makes forests of snapshots, a parent before its children, in the order of names. A snapshot whose parent is not among
// them stands at the bottom.
func grow(all []admin.Snapshot) []forest {
	nodes := make(map[place]*node, len(all))
	forests := make(map[string]*forest)
	for _, s := range all {
		n := &node{Snapshot: s}
		nodes[place{s.Name, s.Key}] = n
		f := forests[s.Name]
		if f == nil {
			f = &forest{name: s.Name}
			forests[s.Name] = f
		}
		f.count++
		below := nodes[place{s.Name, s.Parent}]
		if s.Parent == "" || below == nil {
			f.roots = append(f.roots, n)
			continue
		}
		below.children = append(below.children, n)
		n.shared, n.depth = below.shared+sizeOf(below.Snapshot), below.depth+1
		n.partly = below.partly || below.Usage == nil
	}
	var sorted []forest
	for _, name := range slices.Sorted(maps.Keys(forests)) {
		sorted = append(sorted, *forests[name])
	}
	return sorted
}

// prune leaves what keep wants, and, set aside, what that is made upon.
func (f *forest) prune(keep func(admin.Snapshot) bool) {
	f.count = 0
	f.roots = f.pruned(f.roots, keep)
}

// pruned walks with a stack of its own: chains are as long as somebody made them.
func (f *forest) pruned(roots []*node, keep func(admin.Snapshot) bool) []*node {
	for _, n := range slices.Backward(before(roots)) { // children first
		n.children = slices.DeleteFunc(n.children, func(c *node) bool { return c.aside && len(c.children) == 0 })
		n.aside = !keep(n.Snapshot)
		if !n.aside {
			f.count++
		}
	}
	return slices.DeleteFunc(roots, func(n *node) bool { return n.aside && len(n.children) == 0 })
}

// before returns all nodes, each before its children and after those of its elder siblings.
func before(roots []*node) (all []*node) {
	stack := slices.Clone(roots)
	slices.Reverse(stack)
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		all = append(all, n)
		for _, c := range slices.Backward(n.children) {
			stack = append(stack, c)
		}
	}
	return all
}

// through returns what is above and below a snapshot: its chain, and all that is made upon it.
func through(all []admin.Snapshot, s admin.Snapshot) []admin.Snapshot {
	byKey := make(map[place]admin.Snapshot, len(all))
	for _, one := range all {
		byKey[place{one.Name, one.Key}] = one
	}
	in := map[place]bool{{s.Name, s.Key}: true}
	for key := s.Parent; key != ""; {
		at := place{s.Name, key}
		if in[at] {
			break
		}
		in[at] = true
		key = byKey[at].Parent
	}
	above := map[place]bool{{s.Name, s.Key}: true}
	for _, one := range all { // parents come first
		if one.Parent != "" && above[place{one.Name, one.Parent}] {
			above[place{one.Name, one.Key}] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(one admin.Snapshot) bool {
		at := place{one.Name, one.Key}
		return !in[at] && !above[at]
	})
}
