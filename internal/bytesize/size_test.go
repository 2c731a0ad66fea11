package bytesize

import "testing"

// FuzzUnmarshal holds a size that is taken to be one that is written and read again as the same.
func FuzzUnmarshal(f *testing.F) {
	for _, seed := range []string{"auto", "0", "-1", "100GiB", "1e30", "9223372036854775807", "99999999TiB", "1.5k", " 1", "NaN", "Inf", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s, again Size
		if s.UnmarshalText([]byte(text)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%q is %d, and %q is %d: %v", text, s, s, again, err)
		}
		if s > 1<<63-1 {
			t.Errorf("%q is %d", text, s)
		}
	})
}
