package peers

import (
	"flag"
	"os"
	"testing"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

func TestMain(m *testing.M) {
	guest.Reenter()
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" {
		os.Exit(m.Run()) // nothing that needs a guest
	}
	os.Exit(guest.Main(m, guest.Options{Udev: true}))
}
