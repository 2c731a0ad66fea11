// Package bytesize has the type of sizes in configurations.
package bytesize

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
)

// Size is a number of bytes, in a configuration a text such as "100GiB", "64K" or "auto". Units are powers of 1024.
type Size uint64

const auto = "auto" // the text of 0

// UnmarshalText parses a size. A number without a unit is bytes.
func (s *Size) UnmarshalText(text []byte) error {
	if string(text) == auto {
		*s = 0
		return nil
	}
	n, err := units.RAMInBytes(string(text))
	if err != nil {
		return fmt.Errorf("%q is no size, such as \"100GiB\": %w", text, err)
	}
	if n <= 0 {
		return errors.New(`a size is more than 0; "auto" leaves it to Lamina`)
	}
	*s = Size(n)
	return nil
}

// MarshalText returns the size in the largest unit that it is a whole number of.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns what MarshalText does.
func (s Size) String() string {
	if s == 0 {
		return auto
	}
	n, unit := uint64(s), 0
	suffixes := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for n%1024 == 0 && unit < len(suffixes)-1 {
		n /= 1024
		unit++
	}
	return fmt.Sprintf("%d%s", n, suffixes[unit])
}
