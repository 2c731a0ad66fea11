//go:build !failpoint

package failpoint

import "testing"

// An ordinary build must not obey the environment.
func TestHitDoesNothing(t *testing.T) {
	t.Setenv("LAMINA_FAILPOINT", "name") // it would end the test
	t.Setenv("LAMINA_FAILPOINT_LOG", "/nonexistent/file")
	Hit("name")
}
