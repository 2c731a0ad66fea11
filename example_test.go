package lamina_test

import (
	"fmt"

	"github.com/lamina-snapshotter/lamina"
)

// A configuration is checked as a whole before anything is opened; the messages begin with the keys.
func ExampleConfig_Validate() {
	c := lamina.DefaultConfig()
	c.Root = "lamina"
	c.Union.Sync = "off"
	c.Snapshotters["fast"] = lamina.SnapshotterConfig{Backend: "zfs"}
	fmt.Println(c.Validate())
	// Output:
	// root: "lamina" is not an absolute path
	// snapshotters.fast.backend: "zfs" is none of: union, thin
}
