package overlayaufs_test

import (
	"fmt"

	"github.com/lamina-snapshotter/lamina/overlayaufs"
)

func ExampleConfig_Validate() {
	cfg := overlayaufs.Config{Root: "/var/lib/lamina/union", Index: "yes"}
	fmt.Println(cfg.Validate())
	// Output: union.index = "yes": must be one of ["auto" "on" "off"]
}
