package main

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/internal/term"
)

// The labels that tell of images. CRI gives them to the layers that it unpacks.
const (
	labelImage       = "containerd.io/snapshot/cri.image-ref"
	labelLayerDigest = "containerd.io/snapshot/cri.layer-digest"
)

// digest is the text of a digest, of which twelve digits suffice for people.
var digest = regexp.MustCompile(`^(sha256|sha384|sha512):([0-9a-f]{12})[0-9a-f]+$`)

// splitKey returns the namespace of a key and what a client of containerd calls the snapshot: containerd makes a key of its namespace, a
// number and that name. Other keys have no namespace.
func splitKey(key string) (namespace, name string) {
	namespace, rest, ok := strings.Cut(key, "/")
	number, name, ok2 := strings.Cut(rest, "/")
	if _, err := strconv.ParseUint(number, 10, 64); !ok || !ok2 || err != nil || namespace == "" || name == "" {
		return "", key
	}
	return namespace, name
}

// shortName returns what people call a snapshot.
func shortName(key string) string {
	_, name := splitKey(key)
	if m := digest.FindStringSubmatch(name); m != nil {
		return m[1] + ":" + m[2]
	}
	return term.Quote(name)
}

// imageOf returns the image that a snapshot is a layer of, or the layer's digest, as far as its labels say.
func imageOf(s admin.Snapshot) string {
	if image := s.Labels[labelImage]; image != "" {
		return term.Quote(image)
	}
	if layer := s.Labels[labelLayerDigest]; layer != "" {
		return shortName(layer)
	}
	return ""
}

// fits reports whether text is the beginning of a key, of the name in it, or of the digest in that.
func fits(key, text string) bool {
	_, name := splitKey(key)
	_, hex, _ := strings.Cut(name, ":")
	return strings.HasPrefix(key, text) || strings.HasPrefix(name, text) || hex != "" && strings.HasPrefix(hex, text)
}
