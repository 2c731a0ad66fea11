package guest

import (
	"encoding/json"
	"io"
	"time"
)

// A report says on the control line how the program in the guest ended.
type report struct {
	Exit  int    // exit code; 128 and the signal if one ended it
	Error string // why the program could not run, or not end
	Alive bool   // it says nothing but that the guest runs

	// The bytes that the guest wrote on the lines of the program's output.
	Out, Err int64
}

func (r report) writeTo(w io.Writer) {
	// If this fails the parent says that there was no report.
	_ = json.NewEncoder(w).Encode(r)
}

// beatInterval is how often a guest says that it runs.
const beatInterval = time.Second

// beat says that the guest runs until stop is called.
func beat(w io.Writer) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(beatInterval)
		defer tick.Stop()
		for {
			report{Alive: true}.writeTo(w)
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// sendReport sends what the guest reports, and closes the channel at the end.
func sendReport(reports chan<- report) func(io.Reader) {
	return func(r io.Reader) {
		defer close(reports)
		lines := json.NewDecoder(r)
		for {
			var next report
			if lines.Decode(&next) != nil {
				return
			}
			reports <- next
			if !next.Alive {
				return
			}
		}
	}
}
