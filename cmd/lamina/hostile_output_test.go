package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lamina-snapshotter/lamina"
	"github.com/lamina-snapshotter/lamina/admin"
	"github.com/lamina-snapshotter/lamina/doctor"
)

// hostile is a text that would set a title, clear the screen, turn what follows around, and add a line that reads like one of ours.
const hostile = "k\x1b]0;owned\a\x1b[2J\r\b\t\nlamina: all is well\n\u009b2J\u202e\u2066\u200f\u2028\x7f<script>\"'&]]>"

// tNamed fills every string of a value with text, and gives everything else a value.
func tNamed(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		tNamed(v.Elem(), text)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		tNamed(v.Index(0), text)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		tNamed(key, text)
		tNamed(value, text)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(now))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				tNamed(v.Field(i), text)
			}
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Int:
		v.SetInt(1)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	default:
		panic(v.Type())
	}
}

func tName[T any](text string) (what T) {
	tNamed(reflect.ValueOf(&what).Elem(), text)
	return what
}

// tCalled returns a root in which everything is called text: two snapshots, of which one is the other's parent.
func tCalled(text string) *fakeRoot {
	child, parent := tName[admin.Snapshot](text), tName[admin.Snapshot](text)
	child.Parent, parent.Key, parent.Parent = "parent/"+text, "parent/"+text, ""
	child.Labels = map[string]string{labelImage: text, text: text}
	f := &fakeRoot{
		status: tName[admin.Status](text), snapshots: []admin.Snapshot{parent, child},
		inspected: map[string]admin.Inspection{text: tName[admin.Inspection](text)},
	}
	for _, s := range f.snapshots {
		f.space = append(f.space, admin.Space{Name: s.Name, Key: s.Key, Own: 1})
	}
	return f
}

// A calledHost has a volume of a name.
type calledHost struct {
	fakeHost

	text string
}

func (c calledHost) Usage(_ context.Context, each func(doctor.Usage)) error {
	each(tName[doctor.Usage](c.text))
	return c.err
}

// tHarmless wants nothing printed that a terminal does not only print.
func tHarmless(t *testing.T, what, text string) {
	t.Helper()
	for _, r := range text {
		require.True(t, r == '\n' || strconv.IsPrint(r), "%s has %q: %q", what, r, text)
	}
}

// Whatever others have called things by, each output has the lines that it has of harmless names, and a terminal does nothing but print them.
func TestHostileNames(t *testing.T) {
	lines := []string{
		"status", "ls", "ls -q", "tree", "tree KEY", "inspect KEY", "du", "du --sort own", "top -n 1", "pool status", "pool grow 1GiB", "pool trim", "cleanup",
		"doctor", "doctor --usage", "tree --svg -",
	}
	ask := func(f *fakeRoot, host examiner, key string) map[string][3]string {
		root, address := tLockedRoot(t), tSocketPath(t)
		a, err := openAdmin(t.Context(), address, admin.Handler(root, f, f, doctorEndpoints(host)...))
		require.NoError(t, err)
		defer func() { require.NoError(t, a.close(t.Context())) }()
		said := make(map[string][3]string)
		for _, line := range lines {
			args := strings.Fields(line)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "KEY", key)
			}
			code, stdout, stderr := tRun(t, append(args, "--root", root, "--admin-address", address, "--config", tFile(t, ""))...)
			said[line] = [3]string{stdout, stderr, fmt.Sprint(code)}
		}
		return said
	}
	host := func(text string) examiner {
		return calledHost{fakeHost{findings: []doctor.Finding{tName[doctor.Finding](text)}}, text}
	}
	good, bad := ask(tCalled("harmless"), host("harmless"), "harmless"), ask(tCalled(hostile), host(hostile), hostile)
	for _, line := range lines {
		tHarmless(t, line, bad[line][0]+bad[line][1])
		require.Equal(t, strings.Count(good[line][0], "\n"), strings.Count(bad[line][0], "\n"), "%s:\n%s\n%s", line, good[line][0], bad[line][0])
		require.Equal(t, good[line][1], bad[line][1], line)
		require.Equal(t, good[line][2], bad[line][2], line)
		require.NotEqual(t, "2", bad[line][2], line)
		require.NotEmpty(t, good[line][0], line)
	}
	require.Equal(t, len(tXML(t, []byte(good["tree --svg -"][0]))), len(tXML(t, []byte(bad["tree --svg -"][0]))))

	f := tCalled(hostile)
	f.err = errors.Join(errors.New(hostile), errors.New(hostile))
	for line, said := range ask(f, fakeHost{err: f.err}, hostile) {
		tHarmless(t, line, said[0]+said[1])
		for i, text := range strings.Split(strings.TrimSuffix(said[1], "\n"), "\n") {
			require.True(t, i == 0 && strings.HasPrefix(text, "lamina: ") || i > 0 && strings.HasPrefix(text, "  "), "%s: %q", line, text)
		}
	}
}

// The screen of top, and what knows no names but errors.
func TestHostileLines(t *testing.T) {
	a, out := tAsking()
	w := &watch{asking: a}
	page := w.page(tName[sample](hostile), &screen{out: out})
	tHarmless(t, "top", page)
	require.Equal(t, strings.Count(w.page(tName[sample]("harmless"), &screen{out: out}), "\n"), strings.Count(page, "\n"))

	var features bytes.Buffer
	err := errors.Join(errors.New(hostile), errors.New(hostile))
	require.NoError(t, printFeatures(&features, []lamina.Feature{{Driver: "overlay", Name: "mount", Err: err}}))
	tHarmless(t, "features", features.String())
	require.Equal(t, 2, strings.Count(features.String(), "\n"), features.String())
}

// What a script reads is what is so.
func TestHostileNamesInJSON(t *testing.T) {
	config := tOperated(t, tCalled(hostile))
	var found admin.Snapshot
	out := tOutput(t, "ls", "--sort", "size", "-o", "json", "--config", config)
	tHarmless(t, "ls", out)
	require.NoError(t, json.Unmarshal([]byte(strings.SplitAfter(out, "\n")[1]), &found))
	require.Equal(t, tCalled(hostile).snapshots[1], found)
}
