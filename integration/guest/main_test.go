package guest

import (
	"os"
	"testing"
)

// innerVariable makes this test binary one whose tests run in a guest: the
// tests named TestInside. Else they are the tests of the host's side.
const innerVariable = "LAMINA_GUEST_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(innerVariable) != "" {
		os.Exit(Main(m, Options{Memory: innerMemory, ExtraDisks: []int64{1 << 20}}))
	}
	Reenter()
	os.Exit(m.Run())
}

// innerMemory is unlike that of other guests, so that this one is recognised
// in a list of processes.
const innerMemory = 777 << 20
