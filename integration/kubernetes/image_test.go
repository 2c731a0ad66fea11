package kubernetes

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// The image of the DaemonSet is built as this file says, but for its base images, which are on the Internet: its last stage is read
// here, of the others the command that builds the programs.
var dockerfile = repository("deploy", "kubernetes", "Dockerfile")

// buildCommand is that of the first stage, with what stands around the directory that it builds into.
var buildCommand = regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*) -o /out/ (.*)$`)

// buildPrograms builds Lamina's programs as the image has them.
func buildPrograms(dir, version string) error {
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return err
	}
	command := buildCommand.FindStringSubmatch(string(text))
	if command == nil {
		return errors.New(dockerfile + " builds nothing")
	}
	cmd := exec.Command("/bin/sh", "-c", command[1]+` -o "$OUT/" `+command[2])
	cmd.Dir, cmd.Env = repository(), append(os.Environ(), "OUT="+dir, "VERSION="+version)
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}

// A stage is one of a Dockerfile.
type stage struct {
	base       string
	copies     [][]string // the words of each
	entrypoint []string
	others     []string // instructions that these tests know nothing of
}

func (r registry) lastStage() (s stage) {
	r.t.Helper()
	for line := range strings.Lines(string(mustRead(r.t, dockerfile))) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch instruction {
		case "", "#":
		case "FROM":
			s = stage{base: rest}
		case "COPY":
			s.copies = append(s.copies, strings.Fields(rest))
		case "ENTRYPOINT":
			require.NoError(r.t, json.Unmarshal([]byte(rest), &s.entrypoint))
		default:
			s.others = append(s.others, line)
		}
	}
	require.Equal(r.t, "scratch", s.base)
	require.Empty(r.t, s.others)
	return s
}

// pushNode pushes the image of the DaemonSet with the programs of a directory.
func (r registry) pushNode(tag, programs string) {
	r.t.Helper()
	s := r.lastStage()
	var layers [][]byte
	for _, words := range s.copies {
		from, isBuilt := strings.CutPrefix(words[0], "--from=build")
		if from == "" {
			words = words[1:]
		}
		sources, to := words[:len(words)-1], words[len(words)-1]
		files := map[string]string{}
		for _, source := range sources {
			name := to
			if strings.HasSuffix(to, "/") {
				name = path.Join(to, path.Base(source))
			}
			files[name] = repository(source)
			if isBuilt {
				files[name] = filepath.Join(programs, strings.TrimPrefix(source, "/out/"))
			}
		}
		layers = append(layers, r.layer(files))
	}
	r.pushLayers("lamina/node", tag, s.entrypoint, layers)
}

// layer makes one of files, by the names that they are to have.
func (r registry) layer(files map[string]string) []byte {
	r.t.Helper()
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for name, source := range files {
		info, err := os.Stat(source)
		if err != nil {
			r.t.Fatalf("%v: run integration/setup", err)
		}
		require.NoError(r.t, tw.WriteHeader(&tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o755, Size: info.Size()}))
		_, err = tw.Write(mustRead(r.t, source))
		require.NoError(r.t, err)
	}
	require.NoError(r.t, tw.Close())
	return layer.Bytes()
}

// pushLayers pushes an image of layers that are not compressed.
func (r registry) pushLayers(repository, tag string, entrypoint []string, layers [][]byte) {
	r.t.Helper()
	blobs := map[digest.Digest][]byte{}
	add := func(mediaType string, content []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		blobs[d.Digest] = content
		return d
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	image := ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		Config:   ocispec.ImageConfig{Entrypoint: entrypoint},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	for _, layer := range layers {
		d := add(ocispec.MediaTypeImageLayer, layer)
		manifest.Layers = append(manifest.Layers, d)
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, d.Digest)
	}
	config, err := json.Marshal(image)
	require.NoError(r.t, err)
	manifest.Config = add(ocispec.MediaTypeImageConfig, config)
	text, err := json.Marshal(manifest)
	require.NoError(r.t, err)
	r.push(repository, tag, text, blobs)
}
