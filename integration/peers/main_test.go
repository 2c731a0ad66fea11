package peers

import (
	"os"
	"testing"

	"github.com/lamina-snapshotter/lamina/integration/guest"
)

func TestMain(m *testing.M) { os.Exit(guest.Main(m, guest.Options{})) }
