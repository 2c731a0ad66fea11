package dm

import "fmt"

// A Linear describes a target of type linear: a part of a device.
type Linear struct {
	Dev    DevNum
	Offset uint64 // sectors from the beginning of Dev
}

// Target returns the part as a target of length sectors from the sector start on. Its Params are those that
// [Control.Table] returns for it.
func (l Linear) Target(start, length uint64) Target {
	return Target{Start: start, Length: length, Type: "linear", Params: fmt.Sprintf("%s %d", l.Dev, l.Offset)}
}
