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
	benchmarks := flag.Lookup("test.bench").Value.String() != ""
	os.Exit(guest.Main(m, guest.Options{Udev: benchmarks})) // devmapper, which needs it, is in benchmarks alone
}
