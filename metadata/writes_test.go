package metadata

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// All writes go through the file that keeps the sum; but a new store, which is summed when it is opened.
func TestOneWriter(t *testing.T) {
	writes := []string{"Put", "Delete", "SetSequence", "NextSequence", "CreateBucket", "CreateBucketIfNotExists", "DeleteBucket", "MoveBucket"}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	found := map[string]bool{}
	set := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			where := name
			if fn, ok := decl.(*ast.FuncDecl); ok {
				where += ": " + fn.Name.Name
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains(writes, s.Sel.Name) {
					found[where] = true
				}
				return true
			})
		}
	}
	require.Equal(t, map[string]bool{
		"tx.go: put": true, "tx.go: delete": true, "tx.go: raiseSequence": true, "store.go: initialise": true,
	}, found)
}
