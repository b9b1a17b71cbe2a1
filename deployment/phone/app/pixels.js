// From a photo or a video frame to the bytes that the model takes: height × width × 3, red, green, blue.

// Larger photos are drawn at this size before their pixels are read: 50 megapixels would take 800 MB within the model.
const MAX_SIDE = 1024;

/** Returns an upright picture of a file; its colors are not converted, as in training. Rejects where there is none. */
export async function decode(blob) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    // Some browsers decode more formats, such as HEIC, in an <img> than in createImageBitmap.
    const image = new Image();
    image.src = URL.createObjectURL(blob);
    try {
      await image.decode();
      return image;
    } finally {
      URL.revokeObjectURL(image.src);
    }
  }
}

/** Draws a picture or a video frame into a canvas of at most `side` pixels a side; what is transparent becomes white. */
export function draw(source, side = MAX_SIDE) {
  const width = source.videoWidth || source.naturalWidth || source.width;
  const height = source.videoHeight || source.naturalHeight || source.height;
  if (!width || !height) throw new Error("it has no pixels");
  const scale = Math.min(1, side / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Returns {data, height, width} of a canvas, without the alpha channel. */
export function pixelsOf(canvas) {
  const { width, height } = canvas;
  const rgba = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { data, height, width };
}

/** Returns a small JPEG of a canvas. */
export function thumbnail(canvas) {
  return new Promise((resolve, reject) => {
    const answer = (blob) => (blob ? resolve(blob) : reject(new Error("it cannot be encoded")));
    draw(canvas, 640).toBlob(answer, "image/jpeg", 0.85);
  });
}

/** Returns whether pixels are read as they were drawn: browsers that hide a device's traits may give noise instead. */
export function pixelsAreTrue() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 16, height: 16 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const color = [200, 100, 50];
  context.fillStyle = `rgb(${color})`;
  context.fillRect(0, 0, 16, 16);
  return pixelsOf(canvas).data.every((value, index) => Math.abs(value - color[index % 3]) < 8);
}
